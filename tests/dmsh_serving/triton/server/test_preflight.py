import dataclasses
import os
import socket
from pathlib import Path

import pytest
import tiny_model

from dmsh_serving.errors import InputError, MissingError
from dmsh_serving.triton.repository import write_repository
from dmsh_serving.triton.server import preflight
from dmsh_serving.triton.server.home import PythonFacts, TritonHome
from dmsh_serving.triton.spec import RepositorySpec

GOOD = PythonFacts("3.11", None, numpy="1.26.4", numba="0.60", onnxruntime="1.24", clickhouse=None, dmsh_serving="here")


def home(packaged=True, executable="tritonserver", **changes):
    found = TritonHome(Path(executable), Path("backends"), Path("python"), packaged=packaged)
    vars(found)["facts"] = dataclasses.replace(GOOD, **changes)
    return found


def test_fault_22_numpy_2_beside_the_packaged_triton_is_refused():
    with pytest.raises(MissingError, match=r"numpy 2\.1\.0 .* come back empty; install 'numpy<2'"):
        preflight.check_python(home(numpy="2.1.0"))


def test_numpy_2_beside_another_triton_is_that_tritons_business():
    preflight.check_python(home(packaged=False, numpy="2.1.0"))


@pytest.mark.parametrize("package", ["numpy", "numba", "onnxruntime", "dmsh_serving"])
def test_a_package_missing_from_tritons_python_is_named(package):
    with pytest.raises(MissingError, match=rf"cannot import {package}: install dmsh-toolkit\[server\] there"):
        preflight.check_python(home(**{package: None}))


def test_an_encoder_of_plans_needs_no_onnx_runtime():
    preflight.check_python(home(onnxruntime=None), runs_onnx=False)
    with pytest.raises(MissingError, match="cannot import numba: install"):
        preflight.check_python(home(onnxruntime=None, numba=None), runs_onnx=False)


def test_a_gallery_in_clickhouse_needs_its_client():
    preflight.check_python(home(clickhouse="1.12"), asks_clickhouse=True)
    with pytest.raises(
        MissingError, match=r"cannot import clickhouse_connect: .*dmsh-toolkit\[server,clickhouse\] there"
    ):
        preflight.check_python(home(), asks_clickhouse=True)


def test_a_stub_without_its_libpython_is_refused(monkeypatch):
    class Listing:
        stdout = "\tlibpython3.11.so.1.0 => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x0)\n"

    monkeypatch.setattr(preflight.subprocess, "run", lambda *arguments, **options: Listing())
    with pytest.raises(MissingError, match=r"cannot load libpython3\.11\.so\.1\.0: .* apt install libpython3\.11"):
        preflight.check_python(home())


def test_fault_22_small_shared_memory_is_refused(tmp_path):
    status = os.statvfs(tmp_path)
    with pytest.raises(MissingError, match=rf"{tmp_path} has \d+ MiB free, .* need {2**23} .*--shm-size"):
        preflight.check_shared_memory(tmp_path, needed_bytes=2**43)
    if status.f_bavail * status.f_frsize > 2**20:
        preflight.check_shared_memory(tmp_path, needed_bytes=2**20)


def test_absent_shared_memory_is_refused(tmp_path):
    with pytest.raises(MissingError, match="cannot be written"):
        preflight.check_shared_memory(tmp_path / "absent", needed_bytes=1)


def test_fault_22_a_taken_port_is_refused_by_its_option():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(InputError, match=rf"cannot listen on 127\.0\.0\.1:{port} .* choose another --grpc-port"):
            preflight.check_ports("127.0.0.1", {"--grpc-port": port})
    preflight.check_ports("127.0.0.1", {"--grpc-port": port})


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_number_that_is_no_port_is_refused(port):
    with pytest.raises(InputError, match="use 1 to 65535"):
        preflight.check_ports("127.0.0.1", {"--http-port": port})


def test_one_port_for_two_things_is_refused():
    with pytest.raises(InputError, match="--grpc-port and --http-port are both 54321"):
        preflight.check_ports("127.0.0.1", {"--grpc-port": 54321, "--http-port": 54321})


def test_an_address_that_is_not_this_machines_is_refused():
    with pytest.raises(InputError, match=r"cannot listen on 192\.0\.2\.1:54321"):
        preflight.check_ports("192.0.2.1", {"--grpc-port": 54321})


def test_a_folder_without_models_is_no_repository(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="make a model repository with dmsh-export repository"):
            preflight.check_repository(folder)


@pytest.mark.parametrize("name", ["my models", "a;b", "$(b)", "it's", "a&b", "bücher"])
def test_a_path_that_a_shell_would_take_apart_or_a_stub_cannot_spell_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"cannot start models in a folder with .* in its path: rename it"):
        preflight.check_repository(tmp_path / name)


def test_a_repository_without_its_model_is_refused(tmp_path):
    spec = RepositorySpec(tmp_path / "gallery", tiny_model.BITS, tiny_model.SIZE, tiny_model.FINGERPRINT)
    write_repository(tmp_path / "repository", spec)
    with pytest.raises(InputError, match=r"dmsh_encoder/1/model\.onnx is not there"):
        preflight.check_repository(tmp_path / "repository")


def test_a_repository_that_was_moved_without_its_gallery_is_refused_with_what_to_do(tmp_path):
    model = tiny_model.write(tmp_path / "model.onnx")
    (tmp_path / "glänzend").mkdir()
    spec = RepositorySpec(tmp_path / "glänzend", tiny_model.BITS, tiny_model.SIZE, tiny_model.FINGERPRINT, model=model)
    write_repository(tmp_path / "repository", spec)
    preflight.check_repository(tmp_path / "repository")
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "repository").rename(tmp_path / "elsewhere" / "repository")
    with pytest.raises(InputError, match=r"elsewhere/glänzend is not there.*if one of the two was moved, write"):
        preflight.check_repository(moved)
