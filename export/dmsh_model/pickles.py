"""What ``torch.save`` wrote is looked through before ``torch.load`` builds it: torch runs no code, but asks no size."""

import io
import math
import pickle
import pickletools
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, Final, NamedTuple, NoReturn

import torch

__all__ = ["check_pickles"]

_ITEM_SIZES: Final = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1,
}  # fmt: skip
_BEFORE, _AFTER = 3, 1  # pickles around the content, in a file of torch before 1.6
_MOST_TUPLES = 1 << 16  # four per tensor; Python crashes when it hashes one that lies some 100,000 deep
_PROTOCOL = 2  # the one that torch.save uses; later ones have words that take memory


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


class _Unpickler(pickle.Unpickler):
    """Builds nothing but containers and plain values: markers stand for storages and tensors.

    Attributes:
        seen: bytes of each storage, by its key.
    """

    def __init__(self, content: io.BytesIO) -> None:
        super().__init__(content, encoding="utf-8")
        self.seen: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a class or function; refuse those that neither a tensor nor a plain value needs."""
        if module == "torch" and name.removesuffix("Storage") in _ITEM_SIZES and name.endswith("Storage"):
            return _Kind(_ITEM_SIZES[name.removesuffix("Storage")])
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
        _, members_named = _load(content)
        if not isinstance(members_named, list) or {*members_named} != {*seen}:
            _refuse()
    elif any(members.get(key) != size for key, size in seen.items()):
        _refuse()
    if sum(seen.values()) > limit:
        _refuse()


def _load(content: io.BytesIO) -> tuple[dict[str, int], Any]:
    """Return the storages that the next pickle names, with their bytes, and what it holds; step over it."""
    start = content.tell()
    tuples = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        tuples += opcode.name.startswith("TUPLE")
        # The unpickler makes room for as many values as the largest number that a "PUT" gives to one.
        if opcode.proto > _PROTOCOL or ("PUT" in opcode.name and (argument or 0) > count) or tuples > _MOST_TUPLES:
            _refuse()
    content.seek(start)
    unpickler = _Unpickler(content)
    value = unpickler.load()
    return unpickler.seen, value


def _ordered(*items: Any) -> OrderedDict[Any, Any]:
    """Take no argument, or the list of pairs that Python 2 wrote."""
    if items and not (len(items) == 1 and isinstance(items[0], list)):
        _refuse()
    return OrderedDict(*items)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> _Tensor:
    """Stand for a tensor that lies within its storage and has no item twice."""
    numbers = (offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else (None,)
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
    if not isinstance(lengths, tuple):
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
