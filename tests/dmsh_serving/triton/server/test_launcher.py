"""The launcher without a server; tests/live has the rest."""

import os
import threading
import time
import types

import pytest

from dmsh_serving.clickhouse.address import Address
from dmsh_serving.errors import DmshError, InputError, MissingError
from dmsh_serving.triton.repository import write_repository
from dmsh_serving.triton.served_config import EncoderConfig, read_encoder_config
from dmsh_serving.triton.server import launcher
from dmsh_serving.triton.server.launcher import TritonServer, free_ports
from dmsh_serving.triton.server.leftovers import shared_memory
from dmsh_serving.triton.spec import Plan, RepositorySpec, TensorRTBackend


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


@pytest.mark.parametrize("is_remote", [True, False])
def test_a_ranker_that_waits_for_clickhouse_works(tmp_path, is_remote):
    place = Address("images", "photos", host="db.example") if is_remote else tmp_path / "gallery"
    write_repository(tmp_path / "repository", RepositorySpec(place, 64, 16, "ab" * 32))
    worked = TritonServer(tmp_path / "repository")._worked(os.getpid())
    before = time.monotonic()
    time.sleep(0.05)
    assert (worked("dmsh_ranker") > before) == is_remote
    assert worked("dmsh_encoder") < time.process_time() + 1  # its processor's


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


@pytest.fixture
def watched(startable, monkeypatch):
    """Give the server a test's own methods in place of those that need a Triton."""

    def give(**acts):
        addresses = types.SimpleNamespace(note=lambda: None, forget=lambda: None)
        control = types.SimpleNamespace(drain=lambda _: None)
        for name, act in {
            "_launch": lambda: None,
            "_addresses": lambda: addresses,
            "_control": control,
            **acts,
        }.items():
            monkeypatch.setattr(startable, name, act)
        return startable

    return give


def dies_again_and_again(watched, failure):
    """Let a server die and four starts fail; return it, all that was told, and the waits before each start."""
    attempts, lost, told = iter([None, *[failure] * 4, None]), iter(["it died"] * 5), []
    done = threading.Event()

    def launch():
        if failed := next(attempts):
            raise failed

    def tell(event):
        told.append(event)
        if "was started again" in event:
            done.set()

    with watched(_launch=launch, _what_is_lost=lambda: next(lost, None), _on_event=tell) as server:
        assert done.wait(60), told
    waits = [event.rpartition("started again in ")[2] for event in told if "is started again in" in event]
    return server, told, waits


def test_a_server_that_ends_as_soon_as_it_can_be_asked_is_started_again_soon(watched, monkeypatch):
    for name, seconds in (("RETRY", 0.01), ("SERVED_RETRY", 0.015), ("LONGEST_RETRY", 0.05)):
        monkeypatch.setattr(launcher, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(launcher.ServerLog, "said", lambda _: "Started GRPCInferenceService at 127.0.0.1:8001")
    _, _, waits = dies_again_and_again(watched, MissingError("it ended"))
    assert waits == ["0.01 s", "0.015 s", "0.015 s", "0.015 s"]


@pytest.mark.parametrize("failure", [OSError(24, "Too many open files"), RuntimeError("can't start new thread")])
def test_a_start_again_that_the_system_refuses_is_tried_again_ever_more_rarely(watched, monkeypatch, failure):
    for name, seconds in (("RETRY", 0.01), ("SERVED_RETRY", 0.005), ("LONGEST_RETRY", 0.05)):
        monkeypatch.setattr(launcher, f"{name}_SECONDS", seconds)
    server, told, waits = dies_again_and_again(watched, failure)
    assert told[0] == f"it died, and Triton could not be started again: {failure}"
    assert waits == ["0.01 s", "0.02 s", "0.04 s", "0.05 s"]
    assert (server.restarts, server.failure) == (5, None)


@pytest.mark.parametrize("failure", [OSError(24, "Too many open files"), RuntimeError("can't start new thread")])
def test_a_watch_that_cannot_look_for_a_moment_goes_on_and_says_so_once(watched, monkeypatch, failure):
    monkeypatch.setattr(launcher, "WATCH_SECONDS", 0.001)
    told, looks, seen = [], iter([failure] * 3), threading.Event()

    def look():
        if failed := next(looks, None):
            raise failed
        seen.set()

    with watched(_what_is_lost=look, _on_event=told.append) as server:
        assert seen.wait(60)
    assert told == [f"Triton cannot be watched: {failure}"]
    assert (server.restarts, server.failure) == (0, None)


def test_a_server_is_started_again_though_nobody_can_be_told(watched):
    lost, launches, done = iter(["it died"]), [], threading.Event()

    def deaf(event):
        raise OSError(28, "No space left on device")

    def look():
        found = next(lost, None)
        if found is None:
            done.set()
        return found

    with watched(_launch=lambda: launches.append(1), _what_is_lost=look, _on_event=deaf) as server:
        assert done.wait(60)
    assert (len(launches), server.restarts, server.failure) == (2, 1, None)


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "127.0.0.1:8001"), ("0.0.0.0", "127.0.0.1:8001"), ("::1", "[::1]:8001"), ("::", "[::1]:8001")],
)
def test_an_address_of_ipv6_is_written_in_brackets(tmp_path, host, url):
    try:
        assert TritonServer(tmp_path, host=host, grpc_port=8001).url == url
    except OSError as error:
        pytest.skip(f"this machine has no {host}: {error}")


def test_a_server_whose_shared_memory_is_full_of_large_requests_is_started_again(watched, monkeypatch):
    server = watched()
    monkeypatch.setattr(server, "_process", types.SimpleNamespace(poll=lambda: None, pid=1))
    monkeypatch.setattr(server, "_stubs", [])
    for full in (False, True):
        regions = types.SimpleNamespace(are_full=lambda permitted, wanted, full=full: full)
        monkeypatch.setattr(server, "_regions", regions, raising=False)
        monkeypatch.setattr(server, "_permitted", 1, raising=False)
        assert ("shared memory is full" in (server._what_is_lost() or "")) == full
