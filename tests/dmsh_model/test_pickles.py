"""A file of torch.save that asks for more memory than it has bytes is refused before torch reads it."""

import _codecs
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict

import pytest
import torch

from dmsh_model import checkpoint
from dmsh_serving.errors import InputError

ONE = torch.ones(1)
HUGE = 1 << 40


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Built:
    """Pickled as an OrderedDict with a state that is no dict."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return OrderedDict, (), self.state


ATTACKS = {
    "bytearray": Call(bytearray, HUGE),
    "set of a tensor": Call(set, Call(torch.Tensor, 1 << 24)),
    "storage of any size": Call(torch.UntypedStorage, HUGE),
    "encode again and again": Call(_codecs.encode, Call(_codecs.encode, "ab", "latin1"), "hex_codec"),
    "copy of an expanded tensor": Call(
        torch._utils._rebuild_device_tensor_from_cpu_tensor, ONE.expand(HUGE), torch.float32, "cpu", False
    ),
    "expanded tensor": ONE.expand(HUGE),
    "dict of a tensor": Call(OrderedDict, torch.ones(4, 2)),
    "state from a tensor": Built(torch.ones(4, 2)),
    "count of a tensor": Call(Counter, torch.ones(4)),
    "size of a tensor": Call(torch.Size, torch.ones(4, dtype=torch.int64)),
    "parameter of no tensor": Call(torch._utils._rebuild_parameter, 1, False, OrderedDict()),
}
KINDS = {"archive": True, "as before torch 1.6": False}


def state():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.zeros(2, 3, 8, 8)).sum().backward()
    optimiser.step()
    return {
        "state_dict": model.state_dict(),
        "parameters": list(model.parameters()),
        "optimizer": optimiser.state_dict(),
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimiser, [3, 3, 5]).state_dict(),
        "epoch": 3, "loss": 0.25, "name": "vgg", "done": True, "best": None, "large": 1 << 70, "lists": ([1], (2, 3)),
        "empty": torch.zeros(0, 3), "scalar": torch.tensor(2.0), "part": torch.arange(6).view(2, 3).T[1:],
        "dtype": torch.float16, "size": torch.Size([1, 2, 3, 4, 5]), "device": torch.device("cpu"),
        "types": [torch.zeros(2).to(kind) for kind in (torch.float64, torch.bfloat16, torch.uint8, torch.bool)],
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_checkpoint_of_a_training_is_read_as_torch_reads_it(kind, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(state(), path, _use_new_zipfile_serialization=KINDS[kind])
    assert repr(checkpoint.read_torch_file(path)) == repr(torch.load(path, weights_only=True))


def test_a_state_dict_as_python_2_wrote_it_is_read(tmp_path):
    """A dict of its items, and a tensor without hooks: published weights of 2017 are such files."""
    path = tmp_path / "weights.pth"
    numbers = torch.arange(6.0).untyped_storage()
    storage = torch.storage.TypedStorage(wrap_storage=numbers, dtype=torch.float32, _internal=True)
    weight = Call(torch._utils._rebuild_tensor, storage, 0, (2, 3), (3, 1))
    torch.save(Call(OrderedDict, [["w", weight]]), path, _use_new_zipfile_serialization=False)
    assert checkpoint.read_tensors(path)["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_fault_27_a_call_that_could_take_memory_is_refused(attack, kind, tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    torch.save({"w": ATTACKS[attack]}, path, _use_new_zipfile_serialization=KINDS[kind])
    refused(path, monkeypatch)


def refused(path, monkeypatch):
    monkeypatch.setattr(torch, "load", None)  # what is refused does not reach it
    with pytest.raises(InputError, match=r"weights\.pt is damaged, or holds more than tensors, and is refused"):
        checkpoint.read_tensors(path)


def write(path, tensor, change, packed=True):
    """Write a state dict of one tensor whose pickle is changed."""
    torch.save({"w": tensor}, path, _use_new_zipfile_serialization=packed)
    if not packed:
        content = path.read_bytes()
        assert change(content) != content
        path.write_bytes(change(content))
        return
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            changed = change(data) if name.endswith("data.pkl") else data
            assert (changed != data) == name.endswith("data.pkl")
            archive.writestr(name, changed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_storage_with_more_than_the_file_has_is_refused(kind, tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"

    def longer(content):
        items = struct.pack("<H", 50_000)
        return content.replace(b"M" + items, b"J" + struct.pack("<i", 1 << 30), 1)

    write(path, torch.zeros(50_000), longer, KINDS[kind])
    refused(path, monkeypatch)


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    content = torch.zeros(50_000)[:300]
    write(path, content, lambda data: data.replace(b"M" + struct.pack("<H", 300), b"M\xff\xff", 1))
    refused(path, monkeypatch)


def test_a_storage_that_is_named_and_never_filled_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    torch.save({"w": torch.zeros(4)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    at = content.rindex(b"\x80\x02]")  # the keys of the storages whose bytes follow
    assert len(pickle.loads(content[at:])) == 1
    path.write_bytes(content[:at] + pickle.dumps([], protocol=2))
    refused(path, monkeypatch)


@pytest.mark.parametrize(
    "key", [b")" + b"\x85" * (1 << 18), b")q\0" + b"h\0h\0\x86q\0" * 40], ids=["crashes", "takes for ever"]
)
@pytest.mark.parametrize("item", [b"Ns", b"Nu"], ids=["item", "items"])
def test_a_key_that_python_cannot_hash_is_refused(key, item, tmp_path, monkeypatch):
    """A tuple as the key of a dict: 260,000 deep, or with two halves that are one, 40 times over."""
    path = tmp_path / "weights.pt"
    path.write_bytes(b"\x80\x02}" + b"(" * (item == b"Nu") + key + item + b".")
    refused(path, monkeypatch)


@pytest.mark.parametrize("content", [b"\x80\x05\x96" + struct.pack("<Q", 4) + b"abcd.", b"\x80\x02(i__main__\nx\n."])
def test_a_word_that_torch_does_not_read_is_refused(content, tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    refused(path, monkeypatch)


@pytest.mark.parametrize("state", [b"}J\0\0\0\x40K\1s", b"N}X\5\0\0\0itemsJ\0\0\0\x40s\x86"], ids=["dict", "slots"])
@pytest.mark.parametrize(
    "target", [b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpuK\4tQ", b"ctorch\nSize\n"],
    ids=["storage", "function"],
)  # fmt: skip
def test_what_was_looked_at_cannot_be_changed_by_a_state(target, state, tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    write(path, torch.zeros(4), lambda _: b"\x80\x02" + target + state + b"b.")
    refused(path, monkeypatch)
