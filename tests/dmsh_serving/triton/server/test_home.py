import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from dmsh_serving.errors import MissingError
from dmsh_serving.triton.server import home as triton_home


@pytest.fixture(autouse=True)
def bare_machine(tmp_path, monkeypatch):
    """No Triton anywhere: not on PATH, not in the variables, not in the current folder, an empty cache."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv(triton_home.HOME_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(triton_home, "_project_root", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def installed(root: Path) -> Path:
    (root / "backends" / "python").mkdir(parents=True)
    return executable(root / "bin" / "tritonserver")


def environment(root: Path, *, release="0.7.0", stub="3.11") -> Path:
    """A Python environment that looks as if nvidia-pytriton was installed, read-only files included."""
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "python").symlink_to(sys.executable)
    packages = root / "lib" / "python3.11" / "site-packages"
    (packages / f"nvidia_pytriton-{release}.dist-info").mkdir(parents=True)
    server = packages / "pytriton" / "tritonserver"
    executable(server / "bin" / "tritonserver").chmod(0o444)
    (server / "backends" / "python").mkdir(parents=True)
    executable(server / "python_backend_stubs" / stub / "triton_python_backend_stub").chmod(0o444)
    return root


def test_without_any_triton_the_message_says_how_to_get_one():
    with pytest.raises(
        MissingError, match=r"no Triton found: run make \.venv-triton/ready .* --triton PATH, set DMSH_TRITON_HOME"
    ):
        triton_home.find()


def test_the_order_is_option_then_variable_then_path_then_made_environment(tmp_path, monkeypatch):
    made = environment(tmp_path / ".venv-triton")
    assert triton_home.find().python == made / "bin" / "python"
    on_path = installed(tmp_path / "on_path")
    monkeypatch.setenv("PATH", str(on_path.parent), prepend=os.pathsep)
    assert triton_home.find().executable == on_path
    named = installed(tmp_path / "named")
    monkeypatch.setenv(triton_home.HOME_VARIABLE, str(tmp_path / "named"))
    assert triton_home.find().executable == named
    given = installed(tmp_path / "given")
    assert triton_home.find(given).executable == given
    assert triton_home.find(tmp_path / "given").executable == given


def test_a_place_without_triton_is_named_with_who_named_it(tmp_path, monkeypatch):
    with pytest.raises(MissingError, match=rf"no Triton at {tmp_path} \(from --triton\)"):
        triton_home.find(tmp_path)
    monkeypatch.setenv(triton_home.HOME_VARIABLE, str(tmp_path / "absent"))
    with pytest.raises(MissingError, match=r"absent \(from DMSH_TRITON_HOME\)"):
        triton_home.find()


def test_an_installation_without_the_python_backend_is_refused(tmp_path):
    with pytest.raises(MissingError, match="has no Python backend"):
        triton_home.find(executable(tmp_path / "bin" / "tritonserver"))


def test_the_package_is_copied_once_with_the_stub_where_the_server_looks(tmp_path):
    home = triton_home.find(environment(tmp_path / "env"))
    assert home.packaged
    assert home.executable.is_relative_to(tmp_path / "cache" / "dmsh" / "nvidia_pytriton-0.7.0-python3.11")
    stub = home.backends / "python" / "triton_python_backend_stub"
    for path in (home.executable, stub):
        assert path.stat().st_mode & stat.S_IXUSR
    (home.backends / "mark").touch()
    assert (triton_home.find(tmp_path / "env").backends / "mark").exists()
    assert [path.name for path in (tmp_path / "cache" / "dmsh").iterdir()] == ["nvidia_pytriton-0.7.0-python3.11"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda copy: (copy / "bin" / "tritonserver").write_bytes(b""),
        lambda copy: (copy / "bin" / "tritonserver").unlink(),
        lambda copy: (copy / "backends" / "python" / "triton_python_backend_stub").write_bytes(b""),
        lambda copy: shutil.rmtree(copy / "backends"),
    ],
)
def test_a_copy_that_is_damaged_is_made_again(tmp_path, damage):
    home = triton_home.find(environment(tmp_path / "env"))
    copy = home.executable.parents[1]
    whole = {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    damage(copy)
    triton_home.find(tmp_path / "env")
    assert {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()} == whole
    assert list(copy.parent.iterdir()) == [copy]


def test_a_copy_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(triton_home.shutil, "copy2", full_disk)
    with pytest.raises(OSError, match="No space left"):
        triton_home.find(environment(tmp_path / "env"))
    assert list((tmp_path / "cache" / "dmsh").iterdir()) == []


def test_a_python_the_package_has_no_stub_for_is_refused(tmp_path):
    with pytest.raises(MissingError, match=r"no stub for Python 3\.11"):
        triton_home.find(environment(tmp_path / "env", stub="3.10"))


def test_an_environment_without_the_package_is_refused(tmp_path):
    executable(tmp_path / "env" / "bin" / "python")
    with pytest.raises(MissingError, match="has no nvidia-pytriton"):
        triton_home.find(tmp_path / "env")


def test_the_servers_environment_is_that_of_its_own_python(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("VIRTUAL_ENV", "/elsewhere")
    home = triton_home.find(environment(tmp_path / "env"))
    found = home.environment()
    assert found["PATH"].split(os.pathsep)[0] == str(tmp_path / "env" / "bin")
    assert str(home.libraries[0]) in found["LD_LIBRARY_PATH"].split(os.pathsep)
    assert "PYTHONPATH" not in found
    assert "VIRTUAL_ENV" not in found
    assert found["NVIDIA_TF32_OVERRIDE"] == "0"


def test_facts_are_what_the_other_python_says(tmp_path):
    home = triton_home.find(environment(tmp_path / "env"))
    assert home.facts.version == f"{sys.version_info.major}.{sys.version_info.minor}"


def test_a_python_that_does_not_run_is_named(tmp_path):
    home = triton_home.find(environment(tmp_path / "env"))
    python = tmp_path / "env" / "bin" / "python"
    python.unlink()
    executable(python).write_text("#!/bin/sh\necho broken >&2; exit 3\n")
    with pytest.raises(MissingError, match=f"{python}, does not run: broken"):
        _ = home.facts


@pytest.mark.parametrize("place", [".", "..", "../.."])
def test_fault_43_a_prepared_server_that_other_users_could_have_changed_is_not_run(tmp_path, place):
    environment(tmp_path / ".venv-triton")
    prepared = triton_home.find().executable.parents[1]
    assert triton_home.find().executable.parents[1] == prepared
    (prepared / place).resolve().chmod(0o777)
    with pytest.raises(MissingError, match="others may write to it, and programs in it would be run"):
        triton_home.find()
