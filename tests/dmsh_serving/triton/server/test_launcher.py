"""The launcher without a server; tests/live has the rest."""

import socketserver
import threading
import types
from pathlib import Path

import pytest

from dmsh_serving.errors import CheckError, DmshError, InputError, MissingError
from dmsh_serving.triton.repository import write_repository
from dmsh_serving.triton.server import launcher, shared_memory
from dmsh_serving.triton.server.launcher import TritonServer, free_ports
from dmsh_serving.triton.server.log import error_from_log
from dmsh_serving.triton.server.served_config import EncoderConfig, read_encoder_config
from dmsh_serving.triton.spec import Plan, RepositorySpec, TensorRTBackend

LOG = Path("triton.log")
FAILED = (
    'I1124 07:28:46.90 9992 a.cc:1] "fine"\n'
    "E1124 07:28:46.90 9992 model_lifecycle.cc:642] \"failed to load '{model}' version 1: Internal: {reason}"
    '\\n\\nAt:\\n  /somewhere/gallery.py(61): current_version\\n"\n'
    "I1124 07:28:46.90 9992 model_lifecycle.cc:777] \"failed to load '{model}'\"\n"
)


@pytest.mark.parametrize(("line", "said"), [
    ("E1129 10:31:33.77 26506 manager.cc:724] \"failed to load model 'dmsh_decode': at least one version must be "
     "available under the version policy of model 'dmsh_decode'\"",
     "dmsh_decode does not load: at least one version must be available"),
    ("[libprotobuf ERROR text.cc:337] Error parsing text-format inference.ModelConfig: 1:30: no field named \"a\".\n"
     "E1129 10:31:39.79 26743 manager.cc:1460] \"Poll failed for model directory 'dmsh_decode': failed to read text "
     "proto from /r/config.pbtxt\"",
     'dmsh_decode does not load: failed to read text proto from /r/config.pbtxt; 1:30: no field named "a".'),
    ('E1129 10:32:00.58 27695 manager.cc:703] "Invalid argument: in ensemble dmsh_search, ensemble tensor k: '
     'inconsistent data type"',
     "in ensemble dmsh_search, ensemble tensor k: inconsistent data type"),
])  # fmt: skip
def test_a_configuration_that_triton_refuses_is_told_with_its_reason(line, said):
    text = f"{line}\nerror: creating server: Internal - failed to load all models\n"
    error = error_from_log(text, LOG)
    assert type(error) is InputError
    assert str(error).startswith(said)
    assert str(error).endswith(": dmsh-export lint finds the place (log: triton.log)")


@pytest.mark.parametrize("kind", [InputError, CheckError, MissingError])
def test_a_models_own_error_keeps_its_kind_and_its_one_line(kind):
    error = error_from_log(
        FAILED.format(model="dmsh_ranker", reason=f"{kind.__name__}: no gallery there: build one"), LOG
    )
    assert type(error) is kind
    assert str(error) == "dmsh_ranker does not load: no gallery there: build one (log: triton.log)"


def test_every_model_that_fails_is_named():
    text = FAILED.format(model="one", reason="InputError: this") + FAILED.format(model="two", reason="KeyError: 'that'")
    error = error_from_log(text, LOG)
    assert str(error) == "one does not load: this; two does not load: 'that' (log: triton.log)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("E1124 07:28:46.9 99 main.cc:1] no GPU\nI1124 07:28:46.9 99 main.cc:1] bye\n", "no GPU"),
        ("error: creating server: Internal - failed\n", "creating server: Internal - failed"),
        (
            "tritonserver: error while loading shared libraries: libx.so\n\n",
            "error while loading shared libraries: libx.so",
        ),
        ("", "its log is empty"),
    ],
)
def test_any_other_failure_is_told_by_the_logs_last_error(text, said):
    error = error_from_log(text, LOG)
    assert type(error) is MissingError
    assert said in str(error)


def test_free_ports_are_different():
    assert len(set(free_ports("127.0.0.1", 20))) == 20


@pytest.mark.parametrize("compatible", [True, False])
def test_triton_is_told_to_trust_the_runtime_of_a_version_compatible_engine_only(tmp_path, compatible):
    (tmp_path / "model.plan").write_bytes(b"an engine")
    plan = Plan(tmp_path / "model.plan", ("8.6",), 1, 8, 32, version_compatible=compatible)
    spec = RepositorySpec(tmp_path / "gallery", 64, 16, "ab" * 32, encoder=TensorRTBackend((plan,)))
    write_repository(tmp_path / "repository", spec)
    assert read_encoder_config(tmp_path / "repository") == EncoderConfig("tensorrt_plan", compatible)
    expected = ["--backend-config=tensorrt,version-compatible=true"] if compatible else []
    assert launcher._backend_settings(tmp_path / "repository") == expected


def test_an_encoder_in_python_is_told_by_its_configuration(tmp_path):
    write_repository(tmp_path / "repository", RepositorySpec(tmp_path / "gallery", 64, 16, "ab" * 32))
    assert read_encoder_config(tmp_path / "repository") == EncoderConfig("python", False)
    assert read_encoder_config(tmp_path) == EncoderConfig("", False)


def test_a_server_that_cannot_run_is_an_error_before_anything_starts(tmp_path):
    with pytest.raises(InputError, match="holds no model folders"):
        TritonServer(tmp_path, triton=tmp_path / "absent").start()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.pbtxt").touch()
    server = TritonServer(tmp_path, triton=tmp_path / "absent")
    with pytest.raises(MissingError, match="no Triton at"):
        server.start()
    with pytest.raises(MissingError, match="was not started"):
        _ = server.pid
    assert server.stop() is None


def test_who_holds_the_port_before_triton_does_not_get_the_key(tmp_path):
    server, heard = TritonServer(tmp_path), []
    server._control_options()

    class Thief(socketserver.StreamRequestHandler):
        def handle(self):
            while line := self.rfile.readline().strip():
                heard.append(line)
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")

    with socketserver.TCPServer(("127.0.0.1", server.http_port), Thief) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        assert server._is_ready()
        assert heard
        assert not any(server._control_key.encode() in line for line in heard)
        server._served_ensembles()
        assert any(server._control_key.encode() in line for line in heard)
        listener.shutdown()


def test_each_start_has_a_control_key_of_its_own(tmp_path):
    server = TritonServer(tmp_path)
    keys = []
    for _ in range(3):
        options = server._control_options()
        keys.append(server._control_key)
        assert all(option.endswith(f"={keys[-1]}") for option in options.values())
    assert len(set(keys)) == 3
    assert min(map(len, keys)) == 32


@pytest.fixture
def startable(tmp_path, monkeypatch):
    """A server whose start comes to its thread, without a Triton on this machine."""
    for name in ("check_repository", "check_ports", "check"):
        monkeypatch.setattr(launcher.preflight, name, lambda *_: None)
    monkeypatch.setattr(launcher.triton_home, "find", lambda *_: None)
    monkeypatch.setattr(shared_memory, "sweep", lambda: None)
    monkeypatch.setattr(shared_memory.RegionPrefix.__init__, "__defaults__", (tmp_path,))
    return TritonServer(tmp_path, log_file=tmp_path / "log")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("no gallery there"), "no gallery there"),
        (OSError(24, "Too many open files"), "Triton cannot run: [Errno 24] Too many open files"),
        (ValueError("odd"), "Triton cannot run: ValueError('odd')"),
    ],
)
@pytest.mark.parametrize("also", ["nothing", "_end", "release"])
def test_a_start_says_what_failed_first_and_never_hangs(startable, monkeypatch, error, said, also):
    def fail(failure):
        raise failure

    monkeypatch.setattr(startable, "_launch", lambda: fail(error))
    if also == "release":
        monkeypatch.setattr(shared_memory.RegionPrefix, also, lambda _: fail(PermissionError(1, "not permitted")))
    elif also == "_end":
        monkeypatch.setattr(startable, also, lambda _: fail(LookupError("odd as well")))
    told = []

    def start():
        try:
            startable.start()
        except DmshError as failure:
            told.append(str(failure))

    starting = threading.Thread(target=start, daemon=True)
    starting.start()
    starting.join(60)
    assert told == [said]
    assert also != "_end" or not list(startable._regions._folder.glob("dmsh-triton-*")), "the regions are not released"


def test_a_start_again_that_the_system_refuses_for_a_moment_is_tried_again(startable, monkeypatch):
    monkeypatch.setattr(launcher, "RETRY_SECONDS", 0.01)
    attempts, lost, told = iter([None, OSError(24, "Too many open files"), None]), iter(["it died"] * 2), []
    done = threading.Event()

    def launch():
        if failure := next(attempts):
            raise failure

    def tell(event):
        told.append(event)
        if "was started again" in event:
            done.set()

    addresses = types.SimpleNamespace(note=lambda: None, forget=lambda: None)
    for name, act in {
        "_launch": launch, "_what_is_lost": lambda: next(lost, None), "_drain": lambda: None, "_on_event": tell,
        "_addresses": lambda: addresses,
    }.items():  # fmt: skip
        monkeypatch.setattr(startable, name, act)
    with startable:
        assert done.wait(60), told
    assert told[0] == "it died, and Triton could not be started again: [Errno 24] Too many open files"
    assert (startable.restarts, startable.failure) == (2, None)
