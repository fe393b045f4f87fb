import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dmsh_serving.triton.server.leftovers import shared_memory
from dmsh_serving.triton.server.leftovers.shared_memory import RegionPrefix, sweep

HOLD_THE_LOCK = "import sys; sys.stdin.read()"


def region(folder, prefix, content=b"x"):
    path = folder / f"{prefix.name}region"
    path.write_bytes(content)
    return path


def test_what_a_dead_server_left_is_swept(tmp_path):
    prefix = RegionPrefix(tmp_path)
    left = region(tmp_path, prefix)
    os.close(prefix.descriptor)  # as the kernel does when the last process is gone
    assert sweep(tmp_path) == [left.name]
    assert list(tmp_path.iterdir()) == []


def test_what_a_living_server_uses_is_left_alone(tmp_path):
    prefix = RegionPrefix(tmp_path)
    used = region(tmp_path, prefix)
    assert sweep(tmp_path) == []
    assert used.exists()
    prefix.release()
    assert list(tmp_path.iterdir()) == []


def test_a_child_that_outlives_its_parent_keeps_its_regions(tmp_path):
    prefix = RegionPrefix(tmp_path)
    used = region(tmp_path, prefix)
    child = subprocess.Popen([sys.executable, "-c", HOLD_THE_LOCK], stdin=subprocess.PIPE, pass_fds=[prefix.descriptor])
    os.close(prefix.descriptor)
    assert sweep(tmp_path) == []
    child.kill()
    child.communicate()
    assert sweep(tmp_path) == [used.name]


def test_regions_are_full_if_they_hold_more_than_permitted_and_no_more_fits(tmp_path, monkeypatch):
    prefix = RegionPrefix(tmp_path)
    region(tmp_path, prefix, os.urandom(1 << 20))
    status = os.statvfs(tmp_path)
    free = status.f_bavail * status.f_frsize
    assert prefix.are_full(permitted_bytes=1 << 19, wanted_bytes=2 * free)
    assert not prefix.are_full(permitted_bytes=1 << 19, wanted_bytes=free // 2)
    assert not prefix.are_full(permitted_bytes=1 << 21, wanted_bytes=2 * free)


def test_regions_of_others_are_left_alone(tmp_path):
    (tmp_path / "triton_python_backend_shm_region_1").touch()
    (tmp_path / "dmsh-triton-without-a-lock").touch()
    assert sweep(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 2


def test_two_prefixes_differ_and_each_removes_its_own(tmp_path):
    first, second = RegionPrefix(tmp_path), RegionPrefix(tmp_path)
    region(tmp_path, first)
    kept = region(tmp_path, second)
    first.release()
    assert kept.exists()
    second.release()


def test_the_lock_is_really_held(tmp_path):
    prefix = RegionPrefix(tmp_path)
    with (tmp_path / f"{prefix.name}.lock").open() as other:
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        finally:
            prefix.release()
    raise AssertionError("a second process could take the lock")


@pytest.mark.parametrize("name", ["", "0", "0123456789ab", "0123456789ab-x", "0123456789AB-", "../0123456789ab-"])
def test_a_forged_lock_takes_no_region_from_a_living_server(tmp_path, monkeypatch, name):
    monkeypatch.setattr("secrets.token_hex", lambda count: "0123456789ab")
    folder = tmp_path / "shm"
    folder.mkdir()
    used = region(folder, RegionPrefix(folder))
    forged = folder / f"dmsh-triton-{name}.lock"
    if "/" in name:
        (folder / "dmsh-triton-..").mkdir()
    forged.touch()
    assert sweep(folder) == []
    assert used.exists()
    assert forged.exists()


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def victim(tmp_path):
    """A file elsewhere, which links in the shared memory may lead to, and that folder."""
    path = tmp_path / "victim"
    path.write_text("mine")
    path.chmod(0o644)
    folder = tmp_path / "shm"
    folder.mkdir()
    return path, folder


def test_what_is_no_plain_file_is_neither_followed_nor_closed_nor_removed(victim):
    path, folder = victim
    prefix = RegionPrefix(folder)
    used = region(folder, prefix)
    used.chmod(0o666)
    (folder / f"{prefix.name}link").symlink_to(path)
    (folder / f"{prefix.name}broken").symlink_to(folder / "absent")
    (folder / f"{prefix.name}folder").mkdir(0o755)
    os.mkfifo(folder / f"{prefix.name}pipe", 0o644)
    others = {
        entry.name: entry.lstat().st_mode for entry in folder.iterdir() if not entry.is_file() or entry.is_symlink()
    }
    prefix.close_to_others()
    assert (mode(used), mode(path)) == (0o600, 0o644)
    prefix.release()
    assert {entry.name: entry.lstat().st_mode for entry in folder.iterdir()} == others
    assert len(others) == 4


def test_a_region_that_becomes_a_link_after_it_was_looked_for_is_not_followed(victim, monkeypatch, caplog):
    path, folder = victim
    prefix = RegionPrefix(folder)
    link = folder / f"{prefix.name}link"
    link.symlink_to(path)
    monkeypatch.setattr(shared_memory, "_own_files", lambda *_: [link])
    prefix.close_to_others()
    assert mode(path) == 0o644
    assert caplog.text.count("is left as it is") == 1


def test_a_lock_that_is_a_link_sweeps_nothing(victim):
    path, folder = victim
    (folder / "dmsh-triton-0123456789ab-.lock").symlink_to(path)
    (folder / "dmsh-triton-0123456789ab-region").touch()
    assert sweep(folder) == []
    assert len(list(folder.iterdir())) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_another_users_files_of_our_names_are_left_alone_and_stop_nothing(tmp_path):
    prefix = RegionPrefix(tmp_path)
    theirs = region(tmp_path, prefix)
    swept = tmp_path / "dmsh-triton-0123456789ab-.lock"
    swept.touch()
    for path in (theirs, swept):
        path.chmod(0o644)
        os.chown(path, 65534, 65534)
    prefix.close_to_others()
    prefix.release()
    assert sweep(tmp_path) == []
    assert (mode(theirs), mode(swept)) == (0o644, 0o644)


def test_a_file_that_cannot_be_removed_is_told_and_the_others_are_removed(tmp_path, monkeypatch, caplog):
    prefix = RegionPrefix(tmp_path)
    paths = [tmp_path / f"{prefix.name}{letter}" for letter in "abc"]
    for path in paths:
        path.touch()
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path.name.endswith(("b", ".lock")):
            raise PermissionError(1, "Operation not permitted", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    prefix.release()
    lock = tmp_path / f"{prefix.name}.lock"
    assert sorted(tmp_path.iterdir()) == [lock, paths[1]]
    assert [f"{path} is left as it is" in caplog.text for path in (paths[1], lock)] == [True, True]
    assert sweep(tmp_path) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(prefix.descriptor)
