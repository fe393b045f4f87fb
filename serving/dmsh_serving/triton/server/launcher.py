"""Run one Triton server: check first, start, wait until ready, watch, stop cleanly.

The watch restarts the server when one of its Python models' processes (stubs) is gone or hangs: Triton 24.10 goes on
calling such a model READY while every request to it fails, and only a new process of the model brings it back. The more
often that happens, the longer it waits in between; it never gives up, since a client must not be able to end a service.
"""

import contextlib
import logging
import math
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from dmsh_serving.clickhouse.address import is_address
from dmsh_serving.contract import RANKER_MODEL
from dmsh_serving.errors import DmshError, MissingError
from dmsh_serving.images.limits import MAX_FILE_BYTES
from dmsh_serving.tls import ServerTls
from dmsh_serving.triton.metrics import RESTARTS_VARIABLE, SLOW_SECONDS, SLOW_SECONDS_VARIABLE
from dmsh_serving.triton.served_config import ranked_gallery, read_encoder_config
from dmsh_serving.triton.server import hidden_arguments, preflight
from dmsh_serving.triton.server import home as triton_home
from dmsh_serving.triton.server.addresses import Addresses
from dmsh_serving.triton.server.control import Control
from dmsh_serving.triton.server.leftovers import environment_folders, shared_memory
from dmsh_serving.triton.server.leftovers.guard import Guard
from dmsh_serving.triton.server.log import ServerLog, error_from_log, news_of_a_gallery
from dmsh_serving.triton.server.model_processes import (
    all_living,
    all_stubs,
    bury_orphans,
    living_stubs,
    processor_seconds,
)
from dmsh_serving.triton.server.preflight import LOOPBACK
from dmsh_serving.triton.server.tracing import Tracing
from dmsh_serving.triton.server.vitals import Vitals

__all__ = ["LOOPBACK", "STOP_SECONDS", "TritonServer", "free_ports"]

READY_SECONDS = 120.0
STOP_SECONDS = 30  # how long requests in flight may take once the server is told to stop
WATCH_SECONDS = 0.25
RETRY_SECONDS = 1.0  # before the second start in a row; each one after it waits twice as long
LONGEST_RETRY_SECONDS = 30.0
SERVED_RETRY_SECONDS = 2.0  # the longest for a server that served since its last start
CALM_SECONDS = 60.0  # a server that lived so long is started again at once
DEAD_STUB_SECONDS = 15.0  # until Triton says itself why a model's process ended while it was loaded
_log = logging.getLogger(__name__)


class TritonServer:
    """One server: ``with TritonServer(repository) as server: SearchClient(server.url)``.

    Ports left None are free ones. HTTP stays on loopback. ``host`` is where gRPC listens, with TLS if ``tls`` names its
    files; ``metrics_host`` is where the metrics do. ``on_event`` is given a line when the watch acts, and when the
    server swaps a gallery or refuses one. ``log_json`` writes the log as JSON; it names requests that take a model over
    ``slow_seconds``. ``tracing`` says where spans go. Without ``canary``, the watch does not search for itself, and so
    sees no process that hangs.

    Attributes:
        url: host:port of gRPC.
        http_url, metrics_url: host:port of HTTP and of the metrics.
        restarts: how often the watch had to start the server again.
        failure: why the server could not be started or kept alive, or None.
        exit_code: tritonserver's, once it has ended.

    Raises:
        DmshError: the preflight found something, or a model does not load (the message says why).
    """

    def __init__(
        self,
        repository: Path,
        *,
        triton: Path | None = None,
        host: str = LOOPBACK,
        metrics_host: str = LOOPBACK,
        grpc_port: int | None = None,
        http_port: int | None = None,
        metrics_port: int | None = None,
        tls: ServerTls | None = None,
        log_file: Path | None = None,
        log_json: bool = False,
        slow_seconds: float = SLOW_SECONDS,
        tracing: Tracing | None = None,
        canary: bool = True,
        on_event: Callable[[str], None] = _log.warning,
    ) -> None:
        free = iter(free_ports(host, 3))
        self.repository, self.host, self.metrics_host = repository.absolute(), host, metrics_host
        self.grpc_port, self.http_port, self.metrics_port = (
            next(free) if port is None else port for port in (grpc_port, http_port, metrics_port)
        )
        self.url = f"{_reached_at(host)}:{self.grpc_port}"
        self.http_url = f"{LOOPBACK}:{self.http_port}"
        self.metrics_url = f"{_reached_at(metrics_host)}:{self.metrics_port}"
        self.tls, self._tracing = tls, tracing
        self.log_file = log_file or triton_home.cache_folder() / f"triton-{self.grpc_port}.log"
        self.restarts = 0
        self.failure: DmshError | None = None
        self.exit_code: int | None = None
        self._triton, self._on_event = triton, on_event
        self._log_json, self._slow_seconds, self._canary = log_json, slow_seconds, canary
        self._launched, self._stopping, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._watch = threading.Thread(target=self._run, name="triton-watch", daemon=True)
        self._control = Control(self.http_url)  # another one for each start
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        self._stubs: frozenset[int] = frozenset()
        self._vitals: Vitals | None = None

    def __enter__(self) -> "TritonServer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id of tritonserver."""
        if self._process is None:
            raise MissingError("this Triton server was not started")
        return self._process.pid

    @property
    def stubs(self) -> frozenset[int]:
        """The process ids of the Python models."""
        return self._stubs

    def start(self) -> None:
        """Check, start, and return when every model is ready."""
        preflight.check_repository(self.repository)  # what was given first, then what the machine has
        self._home = triton_home.find(self._triton)
        ports = {"--grpc-port": self.grpc_port, "--http-port": self.http_port, "--metrics-port": self.metrics_port}
        preflight.check_ports(self.metrics_host, {"--metrics-port": self.metrics_port})
        preflight.check(self._home, self.repository, self.host, ports)
        self._log = ServerLog(self.log_file, as_json=self._log_json, on_line=self._pass_news_on)
        shared_memory.sweep()
        environment_folders.sweep()
        self._regions = shared_memory.RegionPrefix()
        self._permitted = preflight.needed_shared_memory(self.repository)
        self._watch.start()
        try:
            self._launched.wait()
        except BaseException:  # Ctrl-C while models load
            self.stop()
            raise
        if self.failure is not None:
            self.wait()

    def stop(self) -> int | None:
        """Answer what is in flight, end the server, remove what it leaves; return tritonserver's exit code."""
        self._stopping.set()
        if self._watch.ident is not None:
            self._ended.wait()
        return self.exit_code

    def wait(self) -> None:
        """Return when the server was stopped.

        Raises:
            DmshError: it could not be started or kept alive.
        """
        self._ended.wait()  # not join: a join that a signal interrupts takes the thread for ended (CPython 3.11)
        if self.failure is not None:
            raise self.failure

    def _launch(self) -> None:
        if not self._home.executable.is_file():  # a cache may be emptied while it serves
            self._home = triton_home.find(self._triton)
        self._control = Control(self.http_url)
        command = [
            str(self._home.executable),
            f"--model-repository={self.repository}",
            f"--backend-directory={self._home.backends}",
            f"--grpc-address={_bracketed(self.host)}",
            f"--grpc-port={self.grpc_port}",
            f"--http-address={LOOPBACK}",
            f"--http-port={self.http_port}",
            f"--metrics-address={_of_evhtp(self.metrics_host)}",
            f"--metrics-port={self.metrics_port}",
            # Only this launcher controls models, and only to drain them.
            "--model-control-mode=explicit",
            "--load-model=*",
            # The configurations are complete; asking each Python model for its own starts its process twice.
            "--disable-auto-complete-config",
            *(hidden := self._control.options()),
            f"--exit-timeout-secs={STOP_SECONDS}",
            f"--backend-config=python,shm-region-prefix-name={self._regions.name}",
            *([] if self.tls is None else self.tls.options()),
            *([] if self._tracing is None else self._tracing.options()),
            *_backend_settings(self.repository),
        ]
        told = {SLOW_SECONDS_VARIABLE: f"{self._slow_seconds:g}", RESTARTS_VARIABLE: str(self.restarts)}
        with self._log.listening() as log:
            self._process = hidden_arguments.start(
                command,
                hidden,
                self._home.environment() | told,
                cwd="/",  # the models' Python imports from the current folder first
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for this process, which then stops Triton in order
                pass_fds=[self._regions.descriptor],
            )
        self._guard = Guard(self._process.pid, STOP_SECONDS + 5)
        self._stubs = self._wait_ready(self._process)
        if self._canary:
            self._vitals = Vitals(self.http_url, self._worked(self._process.pid), self._tell)
            self._vitals.start()

    def _worked(self, server: int) -> Callable[[str], float]:
        """Return what tells how many seconds a model has worked; for a ranker of ClickHouse, waiting is work, too."""
        waits = is_address(ranked_gallery(self.repository) or "")
        return lambda model: (
            time.monotonic() if waits and model == RANKER_MODEL else processor_seconds(model, server, self._stubs)
        )

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> frozenset[int]:
        """Return when every model is ready, with the stubs that were seen: one of them may have died already."""
        started, died_at = time.monotonic(), math.inf
        stubs: frozenset[int] = frozenset()
        while not self._control.is_ready():
            now = time.monotonic()
            stubs |= all_stubs(process.pid)
            self._regions.close_to_others()
            died_at = math.inf if all_living(stubs) else min(died_at, now)
            dead = now > died_at + DEAD_STUB_SECONDS  # Triton 24.10 waits for ever for one that was killed
            ended = process.poll() is not None
            if ended:
                self._log.finish()
            if ended or (dead and "failed to load" in self._log.said()):
                raise error_from_log(self._log.said(), self.log_file)
            if dead:
                raise MissingError(f"the process of a model died while it was loaded (log: {self.log_file})")
            if now > started + READY_SECONDS:
                raise MissingError(f"Triton was not ready after {READY_SECONDS:.0f} s (log: {self.log_file})")
            if self._stopping.wait(0.05):
                break
        self._regions.close_to_others()  # none is made later
        return stubs | all_stubs(process.pid)

    def _addresses(self) -> Addresses:
        reached = (self.url, self.http_url, self.metrics_url, str(self.log_file), str(self.repository))
        return Addresses(*reached, started=time.time())

    def _run(self) -> None:
        """Start the server, watch it, end it: all in one thread, whose end would also end the server."""
        try:
            for step in (self._serve, self._end_for_good, self._regions.release):  # each, whatever became of the others
                try:
                    step()
                except Exception as error:  # whatever it is: who waits for this thread must hear of it
                    self.failure = self.failure or _failure_from(error)
        finally:
            self._ended.set()
            self._launched.set()

    def _serve(self) -> None:
        self._launch()
        addresses = self._addresses()
        addresses.note()
        self._launched.set()
        self._keep_alive()
        addresses.forget()
        self._control.drain(STOP_SECONDS)

    def _keep_alive(self) -> None:
        wait, began, blind, served = 0.0, time.monotonic(), False, True
        while not self._stopping.wait(WATCH_SECONDS):
            try:
                bury_orphans(self._process.pid if self._process else 0)
                lost = self._what_is_lost()
                blind = False
            except Exception as error:  # no descriptor, no memory or no thread is left, for a moment
                if not blind:
                    self._tell(f"Triton cannot be watched: {error}")
                blind, lost = True, None
            if lost is None:
                continue
            if time.monotonic() > began + CALM_SECONDS:
                wait = 0.0
            if served:  # whatever ended it may be a client's doing, who can do it again
                wait = min(wait, SERVED_RETRY_SECONDS)
            self._end(1)  # no request to a model without its process can be answered: do not wait for them
            self._regions.remove_regions()
            if wait:
                self._tell(f"{lost}: Triton is started again in {wait:g} s")
                if self._stopping.wait(wait):
                    return
            wait = min(LONGEST_RETRY_SECONDS, 2 * wait or RETRY_SECONDS)
            began = time.monotonic()
            self.restarts += 1
            served = False
            try:
                self._launch()
            except Exception as error:  # Triton's, or as above: whatever it is, it is tried again
                self._end(1)
                self._tell(f"{lost}, and Triton could not be started again: {error}")
                served = "Started GRPCInferenceService" in self._log.said()  # so a client may have ended it
                continue
            served = True
            if self._stopping.is_set():
                return
            self._tell(f"{lost}: Triton was started again in {time.monotonic() - began:.1f} s")

    def _tell(self, event: str) -> None:
        """Say what happened; that nobody can hear it, as on a full disk, must end no server."""
        with contextlib.suppress(Exception):
            self._on_event(event)

    def _pass_news_on(self, line: str) -> None:
        """Say what the log says about galleries: who changes one wants to know whether it serves."""
        if news := news_of_a_gallery(line):
            self._tell(news)

    def _what_is_lost(self) -> str | None:
        process = self._process
        if process is None or process.poll() is not None:
            return f"tritonserver ended by itself ({'?' if process is None else process.returncode})"
        if self._vitals is not None and self._vitals.hanging is not None:
            return self._vitals.hanging
        if self._regions.are_full(self._permitted, MAX_FILE_BYTES):
            return "the shared memory is full of what requests above the limits took"
        if all_living(self._stubs):
            return None
        living = living_stubs(process.pid)
        if len(living) < len(self._stubs):
            return "the process of a model died"
        self._stubs = living  # a newer Triton replaces a dead one itself
        return None

    def _end_for_good(self) -> None:
        self.exit_code = self._end(STOP_SECONDS + 5)

    def _end(self, seconds: float) -> int:
        """End the server, gently for ``seconds``, then it and every process of its session; return its exit code."""
        if self._vitals is not None:
            self._vitals.stop()
            self._vitals = None
        process = self._process
        if process is None:
            return 0
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        with contextlib.suppress(ProcessLookupError):  # all have ended by themselves
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if self._guard is not None:
            self._guard.dismiss()
            self._guard = None
        self._log.finish()
        return process.returncode


def _backend_settings(repository: Path) -> list[str]:
    """Return what the encoder's backend needs; without it, Triton refuses an engine of an older TensorRT."""
    compatible = read_encoder_config(repository).version_compatible
    return ["--backend-config=tensorrt,version-compatible=true"] if compatible else []


def _failure_from(error: Exception) -> DmshError:
    if isinstance(error, DmshError):
        return error
    if not isinstance(error, OSError):
        _log.error("the launcher of Triton failed", exc_info=error)
    return MissingError(f"Triton cannot run: {error if isinstance(error, OSError) else repr(error)}")


def _reached_at(host: str) -> str:
    return {"": LOOPBACK, "0.0.0.0": LOOPBACK, "::": "[::1]"}.get(host, _bracketed(host))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _of_evhtp(host: str) -> str:
    """Return an address as Triton's HTTP library takes it, which reads any other one of IPv6 as 255.255.255.255."""
    return f"ipv6:{host}" if ":" in host else host


def free_ports(host: str, count: int) -> list[int]:
    """Return ``count`` different ports that are free on ``host`` now."""
    sockets = [socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) for _ in range(count)]
    try:
        for opened in sockets:
            opened.bind((host, 0))
        return [int(opened.getsockname()[1]) for opened in sockets]
    finally:
        for opened in sockets:
            opened.close()
