"""A look through what ``torch.save`` wrote: ``torch.load`` runs no code, but takes what memory a file asks for."""

import io
import math
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final, NamedTuple, NoReturn

import torch

__all__ = ["check_pickles"]

_ITEM_SIZES: Final = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
_BEFORE = 3  # pickles before the content, in a file of torch before 1.6
_WORDS: Final = (  # those that torch reads; others take memory
    pickle.PROTO, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.REDUCE, pickle.BUILD, pickle.BINPERSID,
    pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
    pickle.APPEND, pickle.APPENDS, pickle.SETITEM, pickle.SETITEMS, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE,
    pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE,
    pickle.SHORT_BINSTRING, pickle.BINGET, pickle.LONG_BINGET, pickle.BINPUT, pickle.LONG_BINPUT,
)  # fmt: skip


# A pickle can set attributes of what it has built ("BUILD"): these have none that can be set.
class _Kind(NamedTuple):
    """A class of storage, such as torch.FloatStorage."""

    item_size: int


class _Storage(NamedTuple):
    items: int


class _Function(NamedTuple):
    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class _Tensor:
    __slots__ = ()


class _Unpickler(pickle._Unpickler):
    """Builds nothing but containers and plain values: markers stand for storages and tensors.

    It is Python's own, in Python: the other one makes room for as many values as a file says it will name.

    Attributes:
        seen: bytes of each storage, by its key.
    """

    dispatch: ClassVar = {word[0]: pickle._Unpickler.dispatch[word[0]] for word in _WORDS}

    def __init__(self, content: io.BytesIO) -> None:
        super().__init__(content, encoding="utf-8")
        self.seen: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a class or function; refuse those that neither a tensor nor a plain value needs."""
        if module == "torch" and name in _ITEM_SIZES:
            return _Kind(_ITEM_SIZES[name])
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return name
        if (module, name) not in _CALLED:
            _refuse()
        return _Function(_CALLED[module, name])

    def persistent_load(self, said: Any) -> _Storage:
        """Note a storage: ("storage", class, key, device, items), and in older files the view, which none has."""
        match said:
            case ("storage", _Kind(item_size=size), str(key), str(), int(items), *view) if items >= 0 and not any(view):
                pass
            case _:
                _refuse()
        if self.seen.setdefault(key, items * size) != items * size:
            _refuse()
        return _Storage(items)


def _with_keys(word: bytes, keys: slice) -> Callable[[Any], None]:
    """Return how a word that adds items to a dict is read: ``keys`` says where on the stack theirs are."""
    read = pickle._Unpickler.dispatch[word[0]]

    def read_checked(unpickler: Any) -> None:
        _check_keys(unpickler.stack[keys])
        read(unpickler)

    return read_checked


_Unpickler.dispatch |= {
    pickle.SETITEM[0]: _with_keys(pickle.SETITEM, slice(-2, -1)),
    pickle.SETITEMS[0]: _with_keys(pickle.SETITEMS, slice(0, None, 2)),
}


def check_pickles(content: io.BytesIO, members: dict[str, int] | None, limit: int) -> None:
    """Refuse pickles that could take more memory than their file has bytes, or call more than makes a tensor.

    Args:
        content: the pickle of an archive; or a file as versions of torch before 1.6 wrote it, from its beginning.
        members: of an archive, the bytes of each storage by its key; None for an older file.
        limit: bytes of the whole file.

    Raises:
        pickle.UnpicklingError: more than tensors and plain values.
        Exception: nearly any other, of damaged bytes.
    """
    for _ in range(0 if members is not None else _BEFORE):
        _load(content)
    seen, _ = _load(content)
    if members is None:
        _, filled = _load(content)
        if not isinstance(filled, list):
            _refuse()
        _check_keys(filled)
        if {*filled} != {*seen}:
            _refuse()
    elif any(members.get(key) != size for key, size in seen.items()):
        _refuse()
    if sum(seen.values()) > limit:
        _refuse()


def _load(content: io.BytesIO) -> tuple[dict[str, int], Any]:
    """Return the storages that the next pickle names, with their bytes, and what it holds; step over it."""
    unpickler = _Unpickler(content)
    try:
        value = unpickler.load()
    except (AttributeError, KeyError, TypeError) as error:  # a word that is not read, or a marker used as another value
        raise pickle.UnpicklingError(str(error)) from error
    return unpickler.seen, value


def _check_keys(keys: Iterable[Any]) -> None:
    """Refuse tuples: one that lies deep crashes Python when it is hashed, and one of its own halves takes for ever."""
    if not all(isinstance(key, str | int | float | bytes) for key in keys):
        _refuse()


def _ordered(*items: Any) -> OrderedDict[Any, Any]:
    """Take no argument, or the list of pairs that Python 2 wrote."""
    if items and not (len(items) == 1 and isinstance(items[0], list)):
        _refuse()
    _check_keys(pair[0] for pairs in items for pair in pairs)
    return OrderedDict(*items)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> _Tensor:
    """Stand for a tensor that lies within its storage and has no item twice."""
    numbers = (offset, *size, *stride) if type(size) is type(stride) is tuple else (None,)
    if not isinstance(storage, _Storage) or not all(type(number) is int and number >= 0 for number in numbers):
        _refuse()
    items = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if items > storage.items or (items and last >= storage.items):
        _refuse()
    return _Tensor()


def _parameter(data: Any, *more: Any) -> _Tensor:
    if not isinstance(data, _Tensor):
        _refuse()
    return data


def _counter(counts: Any) -> Counter[Any]:
    """Count as some of torch's schedules of learning rates do."""
    if not isinstance(counts, dict):
        _refuse()
    return Counter(counts)


def _size(lengths: Any) -> tuple[Any, ...]:
    if type(lengths) is not tuple:
        _refuse()
    return lengths


def _device(*named: Any) -> tuple[Any, ...]:
    return named


def _refuse() -> NoReturn:
    raise pickle.UnpicklingError("more than tensors and plain values")


_CALLED: Final[dict[tuple[str, str], Callable[..., Any]]] = {
    ("collections", "OrderedDict"): _ordered,
    ("collections", "Counter"): _counter,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}
