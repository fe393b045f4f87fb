"""Starting, stopping, and what happens when processes are killed."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import tiny_model
import tritonclient.grpc as triton
from live_world import CODES, IMAGES, World, check, png
from tritonclient.utils import InferenceServerException

from dmsh_serving import gallery
from dmsh_serving.client import Retries, SearchClient
from dmsh_serving.encoder import known_answer
from dmsh_serving.errors import CheckError, InputError, MissingError
from dmsh_serving.triton.repository import write_repository
from dmsh_serving.triton.server import launcher, vitals
from dmsh_serving.triton.server.launcher import TritonServer, free_ports
from dmsh_serving.triton.server.leftovers.shared_memory import SHARED_MEMORY
from dmsh_serving.triton.server.model_processes import all_stubs, living_stubs
from dmsh_serving.triton.spec import RepositorySpec

SLOW_FILE = png(np.zeros((3000, 3000, 3), np.uint8))  # few bytes to send, many pixels to decode

# Makes an encoder compute for 4 s of a processor if it is given a full batch.
SLOWLY = """
import time
_execute = TritonPythonModel.execute

def _slowly(self, requests):
    full = sum(len(request.inputs()[0].as_numpy()) for request in requests) == 8
    end = time.process_time() + 4 * full
    while time.process_time() < end:
        pass
    return _execute(self, requests)

TritonPythonModel.execute = _slowly
"""


@pytest.fixture
def own_world(tmp_path):
    return World.make(tmp_path, 100)


def prefix_of(server_pid):
    """The shared memory prefix that a tritonserver was started with."""
    (option,) = [part for part in psutil.Process(server_pid).cmdline() if "shm-region-prefix-name=" in part]
    return option.split("shm-region-prefix-name=")[1]


def left_of(prefix):
    return [path.name for path in SHARED_MEMORY.glob(f"{prefix}*")]


def wait_until_answered(url, seconds=30.0):
    """Ask until an answer comes; return how long that took."""
    began = time.monotonic()
    while True:
        try:
            with SearchClient(url, timeout=2) as client:
                check(client.search(IMAGES[:2], 5), IMAGES[:2], 5, 100)
            return time.monotonic() - began
        except MissingError:
            assert time.monotonic() - began < seconds
            time.sleep(0.05)


def wait_until_gone(pids, seconds=15.0):
    deadline = time.monotonic() + seconds
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        assert time.monotonic() < deadline, "a process lives on"
        time.sleep(0.05)


def test_fault_20_21_killed_processes_come_back_and_requests_are_answered_again(own_world):
    events = []
    with own_world.server(on_event=events.append) as server:
        wait_until_answered(server.url)
        for victim_of in (lambda: min(server.stubs), lambda: server.pid):
            known = len(events)
            old = server.stubs
            os.kill(victim_of(), signal.SIGKILL)
            deadline = time.monotonic() + 60
            while len(events) == known:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert wait_until_answered(server.url) < 20
            wait_for(lambda old=old: not server.stubs & old)  # Triton answers before the launcher has seen it
            wait_until_gone(old)
        prefix = prefix_of(server.pid)
        assert len(left_of(prefix)) == 1 + len(server.stubs)  # the lock and a region a model, none of the killed
    assert server.restarts == 2
    assert "the process of a model died: Triton was started again in" in events[0]
    assert "tritonserver ended by itself (-9)" in events[1]
    assert server.exit_code == 0
    assert left_of(prefix) == []


def wait_for(condition, seconds=90.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


def test_fault_20_a_process_that_dies_while_it_is_started_again_is_noticed(own_world, monkeypatch):
    monkeypatch.setattr(launcher, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(launcher, "DEAD_STUB_SECONDS", 1.0)
    events = []
    with own_world.server(on_event=events.append) as server:
        first, before = server.pid, server.stubs
        os.kill(min(before), signal.SIGKILL)
        wait_for(lambda: server.pid != first)
        loading = wait_for(lambda: living_stubs(server.pid))
        for stub in loading:
            os.kill(stub, signal.SIGKILL)
        wait_for(lambda: events and "was started again" in events[-1])
        assert wait_until_answered(server.url) < 5
        assert not server.stubs & (before | loading)
    assert server.exit_code == 0


def test_a_start_that_fails_is_tried_again_until_the_gallery_is_mended(own_world, monkeypatch):
    monkeypatch.setattr(launcher, "RETRY_SECONDS", 1.0)
    events = []
    hidden = own_world.folder / "hidden"
    with own_world.server(on_event=events.append) as server:
        hidden.mkdir()
        for file in own_world.gallery.iterdir():  # with a sound version left, that one would serve
            file.rename(hidden / file.name)
        os.kill(min(server.stubs), signal.SIGKILL)
        said = "the process of a model died, and Triton could not be started again: dmsh_ranker does not"
        wait_for(lambda: any(said in event for event in events))
        for file in hidden.iterdir():
            file.rename(own_world.gallery / file.name)
        wait_for(lambda: "was started again" in events[-1])
        assert wait_until_answered(server.url) < 5


@pytest.mark.parametrize("of_model", [True, False], ids=["model", "server"])
def test_fault_36_a_server_that_dies_again_and_again_is_started_soon_each_time_and_never_given_up(
    own_world, monkeypatch, of_model
):
    monkeypatch.setattr(launcher, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(launcher, "SERVED_RETRY_SECONDS", 0.2)
    events = []
    with own_world.server(on_event=events.append) as server:
        for death in range(5):
            os.kill(min(server.stubs) if of_model else server.pid, signal.SIGKILL)
            wait_for(lambda death=death: sum("was started again" in event for event in events) == death + 1)
        assert wait_until_answered(server.url) < 5
    waits = [event.rpartition("started again in ")[2] for event in events if "is started again in" in event]
    assert waits == ["0.1 s", "0.2 s", "0.2 s", "0.2 s"]
    assert (server.restarts, server.failure, server.exit_code) == (5, None, 0)


def test_a_server_whose_prepared_copy_is_deleted_is_started_again_from_a_new_one(own_world, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    events = []
    with own_world.server(on_event=events.append) as server:
        if not (tmp_path / "cache").exists():
            pytest.skip("this Triton is installed, not prepared from a package")
        wait_until_answered(server.url)
        shutil.rmtree(tmp_path / "cache")
        os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: events)
        assert "Triton was started again in " in events[0]
        assert wait_until_answered(server.url) < 5


def test_a_request_that_ends_triton_ends_it_for_a_moment(own_world):
    events = []
    code = triton.InferInput("code", [1, 8], "UINT8").set_data_from_numpy(CODES[:1])
    with own_world.server(on_event=events.append) as server:
        with triton.InferenceServerClient(server.url) as client, pytest.raises(InferenceServerException) as refused:
            client.infer("dmsh_ranker", [code], outputs=[triton.InferRequestedOutput("keys", class_count=1)])
        if refused.value.status() == "StatusCode.INVALID_ARGUMENT":
            assert (server.restarts, wait_until_answered(server.url) < 5) == (0, True)
            pytest.skip(f"this Triton refuses a classification of strings ({refused.value.message()})")
        wait_for(lambda: events)
        assert events[0].startswith("tritonserver ended by itself (-8): Triton was started again in "), events
        assert wait_until_answered(server.url) < 5


@pytest.mark.parametrize("model", ["dmsh_decode", "dmsh_encoder", "dmsh_ranker"])
def test_fault_36_a_process_that_hangs_is_noticed_and_healed(own_world, monkeypatch, model):
    monkeypatch.setattr(vitals, "EVERY_SECONDS", 0.2)
    monkeypatch.setattr(vitals, "PATIENCE_SECONDS", 2.0)
    events = []
    with own_world.server(on_event=events.append, canary=True) as server:
        wait_until_answered(server.url)
        (victim,) = [stub for stub in server.stubs if model in " ".join(psutil.Process(stub).cmdline())]
        os.kill(victim, signal.SIGSTOP)
        wait_for(lambda: events)
        assert events[0].startswith(f"{model} finished no request for 2 s: Triton was started again in ")
        assert wait_until_answered(server.url) < 5
        wait_until_gone([victim])
    assert len(events) == 1


def test_fault_36_a_process_that_hangs_behind_a_full_queue_is_noticed_while_requests_keep_coming(tmp_path, monkeypatch):
    monkeypatch.setattr(vitals, "EVERY_SECONDS", 0.3)
    monkeypatch.setattr(vitals, "PATIENCE_SECONDS", 2.0)
    world, events, ended = World.make(tmp_path, 100, max_queue=2, max_wait_seconds=1), [], threading.Event()

    def search(url):
        with SearchClient(url, retries=Retries(0)) as client:
            while not ended.is_set():
                with contextlib.suppress(MissingError):
                    client.search(IMAGES[:1], 5)

    with world.server(on_event=events.append, canary=True) as server, ThreadPoolExecutor(8) as pool:
        try:
            wait_until_answered(server.url)
            (victim,) = [stub for stub in server.stubs if "dmsh_ranker" in " ".join(psutil.Process(stub).cmdline())]
            for _ in range(8):
                pool.submit(search, server.url)
            os.kill(victim, signal.SIGSTOP)
            wait_for(lambda: events)
            assert events[0].startswith("dmsh_ranker finished no request for 2 s: Triton was started again in ")
        finally:
            ended.set()


def test_an_encoder_that_computes_slow_batches_from_its_start_is_no_process_that_hangs(own_world, monkeypatch):
    monkeypatch.setattr(vitals, "EVERY_SECONDS", 0.2)
    monkeypatch.setattr(vitals, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(vitals, "ALONE_SECONDS", 1.0)
    model = own_world.repository / "dmsh_encoder" / "1" / "model.py"
    model.write_text(model.read_text() + SLOWLY)
    (port,) = free_ports("127.0.0.1", 1)
    ended, answered, looks = threading.Event(), [], []
    seen = launcher.processor_seconds
    monkeypatch.setattr(launcher, "processor_seconds", lambda *asked: looks.append(asked[0]) or seen(*asked))

    def encode():
        with SearchClient(f"127.0.0.1:{port}") as client:
            while not ended.is_set():
                try:
                    answered.append(client.encode(IMAGES[:8]).code)
                except MissingError:
                    ended.wait(0.02)  # it is not there yet

    events = []
    with ThreadPoolExecutor(2) as pool:
        clients = [pool.submit(encode) for _ in range(2)]
        try:
            with own_world.server(on_event=events.append, canary=True, grpc_port=port) as server:
                # Once it was looked at again at the end of a look: it had finished nothing, and computed.
                wait_for(lambda: events or looks.count("dmsh_encoder") > looks.count("dmsh_decode"))
                ended.set()
                for client in clients:
                    client.result()
        finally:
            ended.set()
    assert (events, server.restarts) == ([], 0)
    assert answered
    assert all((code == CODES[:8]).all() for code in answered)


def test_fault_46_a_server_that_drains_is_not_ready(own_world):
    with own_world.server() as server, SearchClient(server.url) as client, ThreadPoolExecutor(7) as pool:
        client.search_files([SLOW_FILE], 5)
        slow = [pool.submit(client.search_files, [SLOW_FILE] * 4, 5) for _ in range(6)]
        time.sleep(0.3)
        stopping = pool.submit(server.stop)
        wait_for(lambda: not server._control.is_ready())
        assert not all(request.done() for request in slow), "readiness ended with the server, not before it"
        assert all(request.result().ids.shape == (4, 5) for request in slow)
        assert stopping.result() == 0


def test_fault_25_a_stop_answers_what_is_in_flight_and_exits_0(own_world):
    with own_world.server() as server, SearchClient(server.url) as client, ThreadPoolExecutor(6) as pool:
        prefix = prefix_of(server.pid)
        client.search_files([SLOW_FILE], 5)  # the connection is open, the batch size known
        slow = [pool.submit(client.search_files, [SLOW_FILE] * 4, 5) for _ in range(6)]
        time.sleep(0.3)  # all are with the server
        assert sum(request.done() for request in slow) < 6
        assert server.stop() == 0
        answers = [request.result() for request in slow]
    assert all(answer.ids.shape == (4, 5) for answer in answers)
    assert left_of(prefix) == []


def test_two_servers_at_once_do_not_disturb_each_other(own_world, server, client):
    with own_world.server() as second, SearchClient(second.url) as other:
        assert {second.grpc_port, second.http_port, second.metrics_port}.isdisjoint(
            {server.grpc_port, server.http_port, server.metrics_port}
        )
        check(other.search(IMAGES[:4], 5), IMAGES[:4], 5, 100)
        check(client.search(IMAGES[:4], 5), IMAGES[:4], 5, 200)
    check(client.search(IMAGES[:4], 5), IMAGES[:4], 5, 200)


def start_command(world, port):
    command = [sys.executable, "-m", "dmsh_serving", "start", "--repository", str(world.repository)]
    command += ["--grpc-port", str(port), "--log-file", str(world.folder / "triton.log")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def triton_of(process):
    (server,) = [child for child in psutil.Process(process.pid).children() if child.name() == "tritonserver"]
    return server


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP])
def test_fault_46_the_start_command_serves_until_it_is_told_to_end_and_exits_0(own_world, ending):
    (port,) = free_ports("127.0.0.1", 1)
    before = signal.signal(ending, signal.SIG_DFL)  # nohup may have made this process ignore it, and so its children
    process = start_command(own_world, port)
    signal.signal(ending, before)
    said = process.stdout.readline()
    assert said.startswith(f"Triton is ready: gRPC 127.0.0.1:{port}"), said or process.communicate(timeout=60)[1]
    wait_until_answered(f"127.0.0.1:{port}")
    prefix = prefix_of(triton_of(process).pid)
    process.send_signal(ending)
    _, errors = process.communicate(timeout=40)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert left_of(prefix) == []


def test_fault_21_a_killed_launcher_leaves_no_server_and_no_shared_memory(own_world):
    (port,) = free_ports("127.0.0.1", 1)
    process = start_command(own_world, port)
    process.stdout.readline()
    prefix = prefix_of(triton_of(process).pid)
    children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    assert children
    process.kill()
    process.communicate()
    wait_until_gone(children, 40)
    with own_world.server(grpc_port=port):
        assert left_of(prefix) == []


def test_fault_21_a_launcher_that_is_killed_while_models_load_leaves_no_process_and_no_shared_memory(own_world):
    (port,) = free_ports("127.0.0.1", 1)
    process = start_command(own_world, port)
    servers = []
    while not any(map(all_stubs, servers)):  # a model that is loaded waits for ever for a lock of the killed Triton
        assert process.poll() is None
        servers = [child.pid for child in psutil.Process(process.pid).children() if child.name() == "tritonserver"]
    prefix = prefix_of(servers[0])
    time.sleep(0.3)
    models = all_stubs(servers[0])
    process.kill()
    process.communicate()
    wait_until_gone(models, 20)
    with own_world.server(grpc_port=port):
        assert left_of(prefix) == []


def test_a_model_that_fails_its_known_answer_is_not_served(own_world):
    codes = tiny_model.codes_of(IMAGES[:2])
    codes[0, 0] ^= 1
    model = tiny_model.write(own_world.folder / "wrong.onnx", answer=known_answer.dump(IMAGES[:2], codes))
    spec = RepositorySpec(own_world.gallery, 64, 16, tiny_model.FINGERPRINT, model=model)
    write_repository(own_world.repository, spec)
    with pytest.raises(CheckError, match=r"dmsh_encoder does not load: .*known answer: 1 of 128 bits differ"):
        own_world.server().start()


def test_a_gallery_of_another_model_is_not_served(own_world):
    gallery.build(own_world.gallery, CODES[:10], None, None, bits=64, fingerprint="cd" * 32, overwrite=True)
    with pytest.raises(InputError, match=r"dmsh_ranker does not load: .*fingerprint is cdcd.*not abab"):
        own_world.server().start()


def test_fault_22_a_taken_port_is_found_before_the_start(own_world, server):
    with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{server.grpc_port} .*choose another --grpc-port"):
        own_world.server(grpc_port=server.grpc_port).start()


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, even if these tests run in the background, where shells have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_start_leaves_nothing(own_world, interruptible):
    server = own_world.server()

    def interrupt_once_begun():
        while server._process is None:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_once_begun, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        server.start()
    assert server.exit_code is not None
    assert not psutil.pid_exists(server.pid)


def test_fault_22_an_environment_without_triton_is_named(own_world, tmp_path):
    with pytest.raises(MissingError, match="no Triton at"):
        TritonServer(own_world.repository, triton=Path(tmp_path)).start()
