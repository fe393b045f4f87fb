"""Who may run code here, see secrets or fill the memory; the numbers are those of the project's table of faults."""

import os
import subprocess
import sys
import types

import numpy as np
import pytest
import tiny_model
from plan_files import write_plan

from dmsh_export.engine.runner import TensorRTRunner
from dmsh_serving.checks import TRUST_PLAN_CODE
from dmsh_serving.errors import InputError, MissingError
from dmsh_serving.triton import backend
from dmsh_serving.triton.repository import write_repository
from dmsh_serving.triton.server import hidden_arguments, log, preflight
from dmsh_serving.triton.server import home as triton_home
from dmsh_serving.triton.spec import Plan, RepositorySpec, TensorRTBackend

SHOW = "import sys; print(open('/proc/self/cmdline').read().split(chr(0))[3:], sys.argv[1:])"


def repository(folder, **options):
    (folder / "gallery").mkdir()
    spec = RepositorySpec(folder / "gallery", tiny_model.BITS, tiny_model.SIZE, tiny_model.FINGERPRINT, **options)
    write_repository(folder / "repository", spec)
    return folder / "repository"


def test_fault_43_a_triton_in_the_current_folder_is_not_run(tmp_path, monkeypatch):
    (tmp_path / ".venv-triton" / "bin").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(triton_home, "_project_root", lambda: tmp_path / "elsewhere")
    monkeypatch.delenv(triton_home.HOME_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(MissingError, match="no Triton found"):
        triton_home.find()


def test_fault_43_a_plan_with_code_in_it_is_loaded_only_if_the_caller_says_so(tmp_path, monkeypatch):
    plan = write_plan(tmp_path / "model.plan", options={"version_compatible": True})
    served = repository(tmp_path, encoder=TensorRTBackend((Plan(plan, ("8.6",), 1, 8, 32, version_compatible=True),)))
    monkeypatch.setattr(preflight, "check_python", lambda *_, **__: None)
    monkeypatch.delenv(TRUST_PLAN_CODE, raising=False)
    with pytest.raises(InputError, match=rf"the encoder of .* carries code.* set {TRUST_PLAN_CODE}=1"):
        preflight.check(None, served, "127.0.0.1", {})
    with pytest.raises(InputError, match=r"model\.plan is version-compatible: it carries code"):
        TensorRTRunner(plan).__enter__()
    monkeypatch.setenv(TRUST_PLAN_CODE, "1")
    preflight.check(None, served, "127.0.0.1", {})


def test_fault_42_a_hidden_argument_is_read_by_the_program_and_not_by_the_process_list(capfd):
    process = hidden_arguments.start(
        [sys.executable, "-c", SHOW, "a", "DMSH_ONE", "b", "DMSH_TWO"],
        {"DMSH_ONE": "--key=one", "DMSH_TWO": "--key=two"},
        dict(os.environ),
    )
    assert process.wait() == 0
    assert capfd.readouterr().out.strip() == (
        "['a', 'DMSH_ONE', 'b', 'DMSH_TWO', ''] ['a', '--key=one', 'b', '--key=two']"
    )


def test_fault_42_a_script_that_would_hand_the_key_on_is_refused(tmp_path):
    script = tmp_path / "tritonserver"
    script.write_text('#!/bin/sh\nexec printf "%s" "$@"\n')
    script.chmod(0o755)
    with pytest.raises(MissingError, match="tritonserver is no binary, so its control key could not be hidden"):
        hidden_arguments.start([str(script), "DMSH_ONE"], {"DMSH_ONE": "--key"}, dict(os.environ))


def test_fault_42_where_nothing_can_be_hidden_nothing_starts(monkeypatch):
    refused = hidden_arguments._STARTER.replace("libc.ptrace(0, 0, None, None)", "True")
    assert refused != hidden_arguments._STARTER
    monkeypatch.setattr(hidden_arguments, "_STARTER", refused)
    with pytest.raises(MissingError, match=r"cannot be hidden from other users.*ptrace_scope"):
        hidden_arguments.start([sys.executable, "-c", "", "DMSH_ONE"], {"DMSH_ONE": "key"}, dict(os.environ))


@pytest.mark.parametrize("max_batch", [1, 32])
def test_fault_44_shared_memory_must_hold_a_full_file_and_a_batch_of_full_filters(tmp_path, max_batch):
    needed = preflight.needed_shared_memory(repository(tmp_path, max_batch=max_batch))
    assert needed == (32 << 20) + (64 << 20) + max_batch * 8_000_000
    assert needed > 64 << 20, "what Docker gives is too little"


class Tensor:
    def __init__(self, values):
        self.values = values

    def name(self):
        return "file"

    def as_numpy(self):
        if isinstance(self.values, Exception):
            raise self.values
        return self.values


@pytest.fixture
def respond(monkeypatch):
    """Answer requests of one tensor each as Triton would have it; each answer is a text."""
    error = types.SimpleNamespace
    kind = type("TritonError", (), {"INVALID_ARG": "INVALID", "INTERNAL": "INTERNAL"})
    kind.__new__ = lambda _, message, code: f"{code}: {message}"
    utils = error(
        TritonError=kind,
        Tensor=lambda _, values: values.tolist(),
        InferenceResponse=lambda tensors=None, error=None: error or tensors[0],
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)

    def answered(answer, *values):
        requests = [
            types.SimpleNamespace(
                inputs=lambda value=value: [Tensor(value)], request_id=lambda place=place: f"r{place}"
            )
            for place, value in enumerate(values)
        ]
        return backend.respond(requests, answer, answered.reasons.append)

    answered.reasons = []
    return answered


def test_fault_37_a_request_without_rows_or_with_lying_bytes_fails_alone(respond):
    good, none, lying = np.ones((1, 1)), np.ones((0, 1)), ValueError("buffer at /secret/path is short")
    bad_rows, answer, bad_bytes = respond(list, none, good, lying)
    assert answer == [[1.0]]
    assert bad_rows == "INVALID: file has no rows: send one at least"
    assert bad_bytes == "INVALID: file cannot be read: its bytes do not agree with its shape and type"
    assert respond.reasons == ["unreadable", "unreadable"]


def test_fault_37_any_other_exception_is_an_internal_error_without_paths_for_its_request(respond, caplog):
    def answer(requests):
        if any(request["file"][0, 0] == 2 for request in requests):
            raise RuntimeError("/secret/path")
        return list(requests)

    assert respond(answer, np.array([[1]]), np.array([[2]]), np.array([[3]])) == [
        [[1]],
        "INTERNAL: the server failed on this request; its log says why",
        [[3]],
    ]
    assert "RuntimeError: /secret/path" in caplog.text
    assert "request r1 failed" in caplog.text
    assert respond.reasons == ["internal"]


def written(path, *lines, **options):
    """Write lines as a server does; return the log."""
    server_log = log.ServerLog(path, **options)
    with server_log.listening() as descriptor:
        os.write(descriptor, "".join(f"{line}\n" for line in lines).encode())
    server_log.finish()
    return server_log


def test_fault_46_a_log_is_appended_to_and_a_large_one_is_kept_beside_the_new_while_it_is_written(
    tmp_path, monkeypatch
):
    path = tmp_path / "triton.log"
    written(path, "of the first start")
    written(path, "of the second")
    assert path.read_text() == "of the first start\nof the second\n"
    monkeypatch.setattr(log, "LARGEST_LOG_BYTES", 40)
    server_log = written(path, *(f"line {number:02} of thirty bytes....." for number in range(10)))
    kept = sorted(file.name for file in tmp_path.iterdir())
    assert kept == ["triton.log", "triton.log.1", "triton.log.2", "triton.log.3"]
    assert [path.with_name(name).read_text().splitlines()[-1][:7] for name in kept] == [
        "line 09",
        "line 08",
        "line 06",
        "line 04",
    ]
    assert server_log.said().count("line") == 10  # what a failed start is judged by is not rotated away


def caching(tmp_path, *program):
    """Return a folder, and what runs a Python program with numba's cache in it."""
    cache = tmp_path / "cache"
    command, environment = [sys.executable, *map(str, program)], {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    return cache, lambda: subprocess.run(command, env=environment, capture_output=True, text=True)


def test_fault_38_a_truncated_file_in_the_cache_of_compiled_code_is_compiled_anew(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from dmsh_serving.hamming.kernels.compile import compiled\n"
        "@compiled('int64(int64)')\n"
        "def doubled(number):\n"
        "    return 2 * number\n"
        "print(doubled(21))\n"
    )
    cache, run = caching(tmp_path, program)
    assert run().stdout == "42\n"
    for ending in ("nbi", "nbc"):
        (file,) = [path for path in cache.rglob(f"*.{ending}") if "program" in path.name]
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        answered = run()
        assert answered.stdout == "42\n", answered.stderr
        file.write_bytes(whole)


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o755])
def test_fault_38_a_cache_that_others_can_write_is_not_run(tmp_path, monkeypatch, caplog, mode):
    from dmsh_serving.hamming.kernels import compile as compiling

    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    ours = mode == 0o755
    compiling._is_ours.cache_clear()
    assert compiling._is_ours(folder) is ours
    assert ("other users can write code to it" in caplog.text) is not ours
    monkeypatch.setattr(os, "geteuid", lambda: 12345)  # then the folder is another's
    compiling._is_ours.cache_clear()
    assert compiling._is_ours(folder) is (ours and folder.stat().st_uid == 0)


def test_fault_38_what_lies_in_a_cache_of_others_is_not_loaded(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from dmsh_serving.hamming.kernels.compile import compiled\n"
        "@compiled('int64(int64)')\n"
        "def doubled(number):\n"
        "    return 2 * number\n"
        "print(doubled(21), doubled.stats.cache_hits)\n"
    )
    cache, run = caching(tmp_path, program)
    run()
    assert run().stdout == "42 {(int64,): 1}\n".replace("{(int64,): 1}", run().stdout[3:-1])
    hit = run()
    for folder in [cache, *(path for path in cache.rglob("*") if path.is_dir())]:
        folder.chmod(0o777)
    open_to_all = run()
    assert "1" in hit.stdout[3:]
    assert "1" not in open_to_all.stdout[3:]
    assert "other users can write code to it" in open_to_all.stderr


def test_fault_38_what_lies_in_a_cache_of_others_is_not_loaded_by_the_evaluation(tmp_path):
    program = (
        "import numpy as np\n"
        "from dmsh_model.evaluation.kernel import bound_precisions\n"
        "counts, sums = np.ones((1, 3), np.int64), np.zeros((1, 1))\n"
        "bound_precisions(counts, counts, np.ones(1, np.int64), sums, sums)\n"
        "print(sum(bound_precisions.stats.cache_hits.values()))\n"
    )
    cache, run = caching(tmp_path, "-c", program)
    run()
    assert run().stdout == "1\n"
    for folder in [cache, *(path for path in cache.rglob("*") if path.is_dir())]:
        folder.chmod(0o777)
    open_to_all = run()
    assert open_to_all.stdout == "0\n"
    assert "other users can write code to it" in open_to_all.stderr


def test_fault_38_a_package_that_others_can_write_is_found_before_the_start(tmp_path):
    (tmp_path / "dmsh_serving").mkdir()
    preflight._check_package(tmp_path / "dmsh_serving")
    (tmp_path / "dmsh_serving").chmod(0o777)
    with pytest.raises(InputError, match=r"can be written by every user.*chmod -R o-w"):
        preflight._check_package(tmp_path / "dmsh_serving")


def test_fault_38_what_searches_need_is_compiled_when_a_gallery_is_opened_and_not_when_one_comes(tmp_path):
    program = """
import sys
import numpy as np
from dmsh_serving import gallery
from dmsh_serving.ranker.follower import Ranker
from numba.core import event

space = {"bits": 64, "fingerprint": "ab" * 32}
codes = np.random.default_rng(0).integers(0, 4, (3000, 8), dtype=np.uint8) % int(sys.argv[2])
gallery.build(sys.argv[1], codes, None, None, **space)
with Ranker(sys.argv[1], **space) as ranker:
    loaded = set(sys.modules)
    with event.install_recorder("numba:compile") as compiled:
        ranker.search(codes[:1], 10)
        ranker.search(codes[:200], 100)
        ranker.search(codes[:2], 10, filters=np.arange(20).reshape(2, 10))
        ranker.search(codes[:1], 10, filters=np.arange(2000).reshape(1, -1))
    print(len(compiled.buffer), sorted(name for name in set(sys.modules) - loaded if "kernels" in name))
"""
    program = program.replace("sys.argv[1]", "Path(sys.argv[1])").replace(
        "import sys", "import sys\nfrom pathlib import Path", 1
    )
    for different in ("4", "2"):
        command = [sys.executable, "-c", program, str(tmp_path / different), different]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.stdout == "0 []\n", done.stderr
