import os
import time

import pytest

from dmsh_serving.triton.server.leftovers.environment_folders import sweep

LONG_AGO = time.time() - 10_000


@pytest.fixture
def processes(tmp_path):
    """A /proc of a machine that booted long ago, without a server."""
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / "stat").write_text(f"cpu 1 2 3\nbtime {int(LONG_AGO) - 10_000}\n")
    return folder


def process(processes, number, name, began):
    ticks = int((began - int(LONG_AGO) + 10_000) * os.sysconf("SC_CLK_TCK"))
    (processes / str(number)).mkdir()
    fields = ["S", *["0"] * 18, str(ticks), "0"]
    (processes / str(number) / "stat").write_text(f"{number} ({name}) {' '.join(fields)}\n")


def folder(tmp_path, letters, made):
    path = tmp_path / f"python_env_{letters}"
    path.mkdir()
    os.utime(path, (made, made))
    return path


def test_an_empty_folder_that_no_living_server_can_have_made_is_removed(tmp_path, processes):
    folder(tmp_path, "aB3dE6", LONG_AGO)
    process(processes, 7, "tritonserver", LONG_AGO + 100)
    process(processes, 8, "python3", LONG_AGO - 100)
    assert sweep(tmp_path, processes) == ["python_env_aB3dE6"]
    assert sweep(tmp_path, processes) == []


def test_a_folder_that_a_living_server_may_have_made_is_left_alone(tmp_path, processes):
    kept = folder(tmp_path, "aB3dE6", LONG_AGO)
    process(processes, 7, "tritonserver", LONG_AGO - 1)
    process(processes, 8, "tritonserver", LONG_AGO + 5_000)
    assert sweep(tmp_path, processes) == []
    assert kept.is_dir()


def test_what_is_new_or_not_empty_or_no_such_folder_or_anothers_is_left_alone(tmp_path, processes, monkeypatch):
    folder(tmp_path, "brandN", time.time())
    full = folder(tmp_path, "filled", LONG_AGO)
    (full / "file").touch()
    os.utime(full, (LONG_AGO, LONG_AGO))
    folder(tmp_path, "of_another_name", LONG_AGO)
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "python_env_linked").symlink_to(target)
    os.utime(tmp_path / "python_env_linked", (LONG_AGO, LONG_AGO), follow_symlinks=False)
    assert sweep(tmp_path, processes) == []
    others = folder(tmp_path, "aB3dE6", LONG_AGO)
    monkeypatch.setattr(os, "geteuid", lambda: others.stat().st_uid + 1)
    assert sweep(tmp_path, processes) == []
    assert target.is_dir()


def test_what_is_older_than_the_machines_own_processes_is_removed(tmp_path):
    made = folder(tmp_path, "aB3dE6", 1.0)  # before any process began
    assert sweep(tmp_path) == [made.name]


def test_a_process_whose_name_is_no_text_stops_nothing(tmp_path, processes):
    folder(tmp_path, "aB3dE6", LONG_AGO)
    process(processes, 7, "name", LONG_AGO)
    stat = processes / "7" / "stat"
    stat.write_bytes(stat.read_bytes().replace(b"name", b"name\xff"))
    assert sweep(tmp_path, processes) == ["python_env_aB3dE6"]
