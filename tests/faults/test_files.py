"""Files and folders after a kill or a power loss; the numbers are those of the project's table of faults."""

import os
from pathlib import Path

import numpy as np
import pytest

from dmsh_export.manifest import publish
from dmsh_serving import files, gallery
from dmsh_serving.codes import uniform_codes

SPACE = {"bits": 64, "fingerprint": "f" * 64}


@pytest.fixture
def log(monkeypatch):
    """Everything that is fsynced, renamed or exchanged from now on, in order."""
    found = []
    fsync, replace, exchange = os.fsync, Path.replace, files._exchange

    def noted_fsync(handle):
        found.append(("fsync", Path(f"/proc/self/fd/{handle}").readlink()))
        fsync(handle)

    def noted_replace(path, target):
        found.append(("named", Path(target)))
        return replace(path, target)

    def noted_exchange(one, other):
        found.append(("exchanged", other))
        return exchange(one, other)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    monkeypatch.setattr(files, "_exchange", noted_exchange)
    return found


def folder_of(path, **contents):
    path.mkdir()
    for name, text in contents.items():
        (path / name).write_text(text)
    return path


def test_fault_39_a_folder_is_replaced_without_a_moment_in_which_there_is_none(tmp_path, monkeypatch):
    old, new = folder_of(tmp_path / "target", weights="old"), folder_of(tmp_path / "new", weights="new")
    rename = os.rename

    def watched(*names):
        rename(*names)
        assert (old / "weights").exists(), "killed now, there would be no target"

    monkeypatch.setattr(os, "rename", watched)
    files.replace_folder(new, old)
    assert (old / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_fault_39_all_of_a_new_folder_is_on_the_disk_before_it_gets_its_name(tmp_path, log):
    target, new = folder_of(tmp_path / "target"), folder_of(tmp_path / "new", config="{}", weights="w")
    folder_of(new / "inner", more="m")
    files.replace_folder(new, target)
    at = log.index(("exchanged", target))
    assert {path for what, path in log[:at]} == {
        *(new / name for name in ("config", "weights", "inner", "inner/more")), new,
    }  # fmt: skip
    assert log[at + 1 :] == [("fsync", tmp_path)]


def test_fault_39_an_export_is_on_the_disk_before_it_gets_its_name(tmp_path, log):
    with publish(tmp_path / "model.onnx") as (draft,):
        draft.write_bytes(b"graph")
        draft.with_name("model.onnx.json").write_text("{}")
    for name in ("model.onnx", "model.onnx.json"):
        at = log.index(("named", tmp_path / name))
        assert (log[at - 1][0], log[at - 1][1].name) == ("fsync", name)
        assert log[at + 1] == ("fsync", tmp_path)


def test_fault_40_a_first_gallery_is_on_the_disk_name_by_name(tmp_path, log):
    folder = tmp_path / "gallery"
    snapshot = gallery.build(folder, uniform_codes(10, 64, seed=0), None, None, **SPACE)
    part, pointer = log.index(("named", snapshot.path)), log.index(("named", folder / gallery.CURRENT))
    assert ("fsync", tmp_path) in log[:part], "the gallery's own name"
    assert log[part - 1][0] == "fsync", "the part's bytes"
    assert ("fsync", folder) in log[part:pointer], "the part's name"
    assert log[pointer - 1][0] == "fsync", "the pointer's bytes"
    assert ("fsync", folder) in log[pointer:], "the pointer's name"


def test_fault_40_so_is_every_later_version(tmp_path, log):
    folder = tmp_path / "gallery"
    gallery.build(folder, uniform_codes(10, 64, seed=0), None, None, **SPACE)
    for change in (
        lambda: gallery.append(folder, uniform_codes(2, 64, seed=1), None, None),
        lambda: gallery.remove(folder, np.array([3])),
        lambda: gallery.compact(folder),
    ):
        log.clear()
        snapshot = change()
        part, pointer = log.index(("named", snapshot.path)), log.index(("named", folder / gallery.CURRENT))
        assert [what for what, _ in log] == ["fsync", "named", "fsync"] * 2
        assert (log[part + 1], log[pointer + 1]) == (("fsync", folder), ("fsync", folder))
        assert part < pointer
