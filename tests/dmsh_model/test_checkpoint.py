import copy
import json
import os
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from project import DEMO_CHECKPOINT

import dmsh_model
from dmsh_model import HashConfig, checkpoint, fingerprint
from dmsh_model.network import DMSH
from dmsh_serving.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DMSH(HashConfig("vgg_small", 24, 32, lateral_features=8, fusion_features=8, num_classes=3)).eval()


@pytest.fixture
def folder(model, tmp_path):
    checkpoint.save(model, tmp_path / "model", training={"seed": 7})
    return tmp_path / "model"


def rewrite(folder, change):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


def test_a_checkpoint_gives_the_same_codes_and_config_back(model, folder):
    loaded = dmsh_model.load(folder)
    assert np.array_equal(loaded.codes(IMAGES), model.codes(IMAGES))
    assert loaded.config == model.config
    assert not loaded.training
    assert checkpoint.read_header(folder)["training"] == {"seed": 7}
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_checkpoint_is_readable_by_those_the_umask_allows(model, tmp_path, umask):
    before = os.umask(umask)
    try:
        checkpoint.save(model, tmp_path / "model")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model" / "model.safetensors").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o777 & ~umask


def test_the_old_checkpoint_is_back_when_the_new_one_cannot_be_moved(model, folder, tmp_path, monkeypatch):
    before, rename = (folder / "config.json").read_bytes(), Path.rename

    def fail(path, to):
        if path.name.startswith(".model.") and not path.name.endswith(".old"):
            raise OSError("no")
        return rename(path, to)

    monkeypatch.setattr("dmsh_serving.files._exchange", lambda new, old: False)  # as on NFS
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"):
        checkpoint.save(model, folder, overwrite=True)
    assert (folder / "config.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_plain_state_dict_beside_a_config_is_a_checkpoint(model, folder):
    torch.save(model.state_dict(), folder / "weights.pth")
    assert np.array_equal(dmsh_model.load(folder / "weights.pth").codes(IMAGES), model.codes(IMAGES))


def test_fault_28_missing_extra_and_misshapen_tensors_are_each_listed(folder):
    def change(tensors):
        tensors["spare"] = torch.zeros(2)
        tensors["fusion.bias"] = torch.zeros(5)
        del tensors["hash.weight"]
        del tensors["hash.bias"]

    rewrite(folder, change)
    with pytest.raises(InputError) as error:
        dmsh_model.load(folder)
    for part in (
        "4 tensors",
        "missing hash.weight [24, 8]",
        "missing hash.bias [24]",
        "extra spare [2]",
        "misshapen fusion.bias [5] (expected [8])",
    ):
        assert part in str(error.value)


def test_a_tampered_weight_is_refused_by_the_fingerprint(folder):
    rewrite(folder, lambda tensors: tensors["hash.bias"].add_(1e-3))
    with pytest.raises(InputError, match="fingerprint"):
        dmsh_model.load(folder)


class Code:
    def __reduce__(self):
        return (os.mkdir, ("it-ran",))


@pytest.mark.parametrize("content", [Code(), {"hash.weight": Code()}])
def test_fault_27_a_pickle_with_code_in_it_is_refused_and_not_run(folder, content, monkeypatch):
    monkeypatch.chdir(folder)
    torch.save(content, folder / "evil.pt")
    with pytest.raises(InputError, match="holds more than tensors"):
        dmsh_model.load(folder / "evil.pt")
    assert not (folder / "it-ran").exists()


@pytest.mark.parametrize("content", [b"", b"half a state", b"not a pickle at all", b"PK\x03\x04 cut"])
def test_a_damaged_state_dict_is_refused(folder, content):
    (folder / "weights.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"weights\.pt is damaged"):
        dmsh_model.load(folder / "weights.pt")


def test_a_state_dict_that_unpacks_to_more_than_the_file_is_refused_before_it_takes_the_memory(folder):
    path = folder / "weights.pt"
    torch.save({"w": torch.zeros(1 << 24)}, path)  # 64 MiB
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(InputError, match=r"weights\.pt is refused: weights/data\.pkl in it is compressed; torch\.save"):
        dmsh_model.load(path)


def test_of_an_archive_with_two_tables_of_contents_the_one_that_was_checked_is_read(tmp_path):
    path, parts = tmp_path / "weights.pt", []
    for value in (1.0, 2.0):
        torch.save({"w": torch.full((4,), value)}, path)
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        content = path.read_bytes()
        parts += [content[: archive.start_dir], content[archive.start_dir : -22]]
    # The end names the first table by its place; zipfile looks for it right before the end.
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(members), len(members), len(parts[1]), len(parts[0]), 0)
    path.write_bytes(b"".join(parts) + end)
    assert torch.load(path, weights_only=True)["w"][0] == 1.0
    assert checkpoint.read_tensors(path)["w"].tolist() == [2.0] * 4


def test_a_state_dict_whose_members_share_their_bytes_is_refused(folder):
    path = folder / "weights.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data/0", bytes(1 << 20))
        (first,) = archive.infolist()
        for number in range(1, 8):
            another = copy.copy(first)
            another.filename = f"weights/data/{number}"
            archive.filelist.append(another)
    with pytest.raises(InputError, match=r"weights\.pt is refused: what is in it is larger than its 1,0\d\d,\d* bytes"):
        dmsh_model.load(path)


def test_a_state_dict_with_more_than_tensors_is_refused(folder):
    torch.save({"epoch": 3}, folder / "weights.pt")
    with pytest.raises(InputError, match="not a plain state dict"):
        dmsh_model.load(folder / "weights.pt")


@pytest.mark.parametrize("length", [0, 7, 1000])
def test_a_truncated_weights_file_is_refused(folder, length):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        dmsh_model.load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "no object 'config'"),
        ('{"config": {"bits": 0}}', "bits = 0 is out of range"),
        ('{"config": {}, "format": "dmsh-checkpoint", "format_version": 99}', "version 99"),
        ('{"config": {"backbone": "vgg91"}}', "nearest names"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused(folder, text, message):
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        dmsh_model.load(folder)


def test_a_config_of_more_weights_than_its_file_is_refused_before_memory_is_taken(folder, monkeypatch):
    header = json.loads((folder / "config.json").read_text())
    header["config"] |= {"lateral_features": 1 << 16, "fusion_features": 1 << 16}
    (folder / "config.json").write_text(json.dumps(header))
    monkeypatch.setattr(checkpoint, "DMSH", None)
    with pytest.raises(InputError, match=r"the fusion layer of its config has 4,294,967,296 weights or more, the file"):
        dmsh_model.load(folder)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        dmsh_model.load(tmp_path / "absent")
    with pytest.raises(InputError, match=r"config\.json is missing"):
        dmsh_model.load(tmp_path)


def test_the_fingerprint_names_weights_config_and_preprocessing(model, folder, monkeypatch):
    first = model.fingerprint
    assert first == json.loads((folder / "config.json").read_text())["fingerprint"]
    monkeypatch.setattr(fingerprint, "decode_recipe", lambda _: "another")
    assert model.fingerprint != first
    monkeypatch.undo()
    with torch.no_grad():
        model.classifier.weight += 1
    assert model.fingerprint == first, "the classifier is no part of a code"
    with torch.no_grad():
        model.hash.weight[0, 0] += 1
    assert model.fingerprint != first


def test_a_checkpoint_of_the_first_rule_of_decoding_keeps_its_codes_and_its_fingerprint():
    """The committed one is older than the second rule: what was made for it must not decode by another."""
    model = dmsh_model.load(DEMO_CHECKPOINT)
    assert "decode_rule" not in json.loads((DEMO_CHECKPOINT / "config.json").read_text())["config"]
    assert model.config.framing.decode_rule == 1
    assert model.fingerprint.startswith("99ebb0ee4814adef")


def test_a_folder_is_replaced_only_when_asked_and_only_if_it_is_a_checkpoint(model, folder, tmp_path):
    with pytest.raises(InputError, match="exists already"):
        checkpoint.save(model, folder)
    checkpoint.save(model, folder, training={"seed": 8}, overwrite=True)
    assert checkpoint.read_header(folder)["training"] == {"seed": 8}
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match="no checkpoint"):
        checkpoint.save(model, tmp_path / "photos", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "photos"]


def test_a_folder_that_holds_more_than_a_checkpoint_is_not_replaced(model, folder):
    (folder / "weights.pth").write_bytes(b"the only ones")
    with pytest.raises(InputError, match=r"holds weights\.pth, which no checkpoint does: choose another name"):
        checkpoint.save(model, folder, overwrite=True)
    assert (folder / "weights.pth").read_bytes() == b"the only ones"


@pytest.mark.parametrize(
    ("text", "is_replaced"), [("", True), ('{"format": "dms', True), ('{"model_type": "bert"}', False)]
)
def test_a_damaged_checkpoint_is_replaced_and_another_kind_of_model_is_not(model, folder, text, is_replaced):
    (folder / "config.json").write_text(text)
    if is_replaced:
        checkpoint.save(model, folder, overwrite=True)
        assert checkpoint.read_header(folder)["fingerprint"] == model.fingerprint
    else:
        with pytest.raises(InputError, match="exists already and is no checkpoint"):
            checkpoint.save(model, folder, overwrite=True)
        assert (folder / "config.json").read_text() == text


def test_float_weights_beside_a_damaged_config_are_not_replaced_by_integers(folder):
    (folder / "config.json").write_text('{"format": "dms')
    with pytest.raises(InputError, match="is a float checkpoint, which cannot be made again of integers"):
        checkpoint.check_target(folder, overwrite=True, kind=checkpoint.INTEGER)


def test_damaged_integers_may_be_replaced_by_integers(folder):
    (folder / "config.json").write_text('{"format": "dms')
    safetensors.torch.save_file({"weight": torch.ones(3, dtype=torch.int8)}, folder / "model.safetensors")
    checkpoint.check_target(folder, overwrite=True, kind=checkpoint.INTEGER)
    (folder / "model.safetensors").write_text("damaged, too")
    checkpoint.check_target(folder, overwrite=True, kind=checkpoint.INTEGER)


def test_a_failed_write_leaves_nothing_behind(model, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.safetensors.torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
