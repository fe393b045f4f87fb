import fcntl
import os
import subprocess
import sys

from dmsh_serving.triton.server.shared_memory import RegionPrefix, sweep

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
