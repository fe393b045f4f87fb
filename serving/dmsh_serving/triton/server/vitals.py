"""Is a server alive? A search for its canary tells: a process that hangs is there, and Triton calls it ready.

A search that is not answered, or that full queues refuse, may have met a busy server: it may stand in the queue of one
model, while the next one has nothing to do. So a model counts as hanging only if it finished no request at all while
the search waited, does not answer a question of its own either, and its process did not compute: one batch may take
minutes. A process that computes through 20 looks in a row and finishes nothing hangs all the same.
"""

import http.client
import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from dmsh_serving.contract import (
    CODE,
    DECODE_MODEL,
    ENCODER_MODEL,
    FILE,
    IDS,
    IMAGE,
    RANKER_MODEL,
    SEARCH_FILE_MODEL,
    K,
)
from dmsh_serving.errors import DmshError
from dmsh_serving.triton.canary import Canary

__all__ = ["PATIENCE_SECONDS", "Vitals"]

EVERY_SECONDS: Final = 5.0
PATIENCE_SECONDS: Final = 15.0  # longer than a batch may take to decode, which is 10 s
SILENCE_SECONDS: Final = 15.0  # for Triton itself to say what it is and has done
ALONE_SECONDS: Final = 5.0  # for a model that had nothing to do to answer a question of its own
# Of the time, in the processor: a process that computes takes more, one that hangs but looks after its gallery less.
_LEAST_SHARE: Final = 0.05
MOST_FAILURES: Final = 4  # in a row, PATIENCE_SECONDS apart in all; a process that has died is noticed before
MOST_LOOKS: Final = 20  # in a row, a third of a minute each, at a process that computes and finishes nothing
_STEPS: Final = (DECODE_MODEL, ENCODER_MODEL, RANKER_MODEL)
# A server that is gone; or another program on its port, which may answer anything: the watch must go on.
_NO_ANSWER: Final = (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError)
_ASKED_ALONE: Final = {ENCODER_MODEL: IMAGE, RANKER_MODEL: CODE}  # the input that such a question needs
_Counts = dict[str, int]


class Vitals:
    """Searches for the canary of the server whose HTTP is at ``url``, again and again, in a thread of its own.

    ``used`` returns the seconds of the processor that the process of a model has had. ``on_event`` is told, once, if a
    search gives another code than the known one: a start anew would not mend that.

    Attributes:
        hanging: what hangs; None while nothing does.
        searches: how many searches were answered.
    """

    def __init__(self, url: str, used: Callable[[str], float], on_event: Callable[[str], None]) -> None:
        self.hanging: str | None = None
        self.searches = 0
        self._url, self._used, self._on_event = url, used, on_event
        self._told = False
        self._looks = 0  # in a row that saw a model compute, and finish nothing
        self._failed: list[tuple[_Counts, float, dict[str, float]]] = []  # what preceded searches in a row that did
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="triton-canary", daemon=True)

    def start(self) -> None:
        """Begin to search."""
        self._thread.start()

    def stop(self) -> None:
        """Search no more; a search under way is left to itself."""
        self._stop.set()

    def _run(self) -> None:
        while self.hanging is None and not self._stop.wait(EVERY_SECONDS):
            self.hanging = self._look()

    def _look(self) -> str | None:
        """Search once; return what hangs, None if nothing does, or nothing can be said."""
        began = time.monotonic()
        try:
            used = {model: self._used(model) for model in _STEPS}
            before = self._finished()
            canary = Canary.from_parameters(_texts(self._json("GET", f"/v2/models/{DECODE_MODEL}/config")))
        except TimeoutError:
            return f"tritonserver gave no answer for {SILENCE_SECONDS:g} s"
        except (*_NO_ANSWER, DmshError):
            return None  # it is gone, which the launcher sees by itself
        try:
            file = len(canary.file).to_bytes(4, "little") + canary.file
            inputs = [(FILE, "BYTES", [1, 1], file), (K, "INT64", [1, 1], (1).to_bytes(8, "little"))]
            headers, body = _request(inputs, [CODE, IDS])  # one of the last step: see docs/serving.md
            path = f"/v2/models/{SEARCH_FILE_MODEL}/infer"
            status, content = self._ask("POST", path, body, headers, PATIENCE_SECONDS)
            if _may_hang(status, content):
                self._failed.append((before, began, used))
                return self._without_progress(*self._failed.pop(0)) if len(self._failed) == MOST_FAILURES else None
            self._failed.clear()
            if status != http.HTTPStatus.OK:
                return None
            found = json.loads(content)
            (code,) = [bytes(output["data"]) for output in found["outputs"] if output["name"] == CODE]
        except TimeoutError:
            return self._without_progress(before, began, used)
        except _NO_ANSWER:
            return None  # it is gone, or no server of ours
        self.searches += 1
        self._looks = 0
        bits = canary.differing_bits(code)
        if bits and not self._told:
            self._on_event(
                f"a search for the known image gives a code of which {bits} bits are wrong: stop this server"
            )
        self._told = bits > 0
        return None

    def _without_progress(self, before: _Counts, began: float, used: dict[str, float]) -> str | None:
        computes = False
        try:
            after = self._finished()
            for model in _STEPS:
                if after.get(model) != before.get(model) or self._answers_alone(model):
                    continue
                computes = self._used(model) - used[model] > _LEAST_SHARE * (time.monotonic() - began)
                if not computes:
                    return f"{model} finished no request for {PATIENCE_SECONDS:g} s"
                if self._looks == MOST_LOOKS:
                    return f"{model} computed through {MOST_LOOKS} looks in a row and finished no request"
        except _NO_ANSWER:
            return f"tritonserver gave no answer for {SILENCE_SECONDS:g} s"
        self._looks = self._looks + 1 if computes else 0
        return None

    def _answers_alone(self, model: str) -> bool:
        """Say whether ``model`` answers a question of its own, or finishes anything else meanwhile."""
        if model not in _ASKED_ALONE:  # the search has asked it already
            return False
        before = self._finished().get(model)
        try:
            config = self._json("GET", f"/v2/models/{model}/config")
            (given,) = (each for each in config["input"] if each["name"] == _ASKED_ALONE[model])
            shape = [1, *map(int, given["dims"])]
            headers, body = _request([(given["name"], "UINT8", shape, bytes(math.prod(shape)))], [])
            status, content = self._ask("POST", f"/v2/models/{model}/infer", body, headers, ALONE_SECONDS)
        except TimeoutError:
            return self._finished().get(model) != before
        except _NO_ANSWER:
            return True  # the server is gone, or no server of ours
        return not _may_hang(status, content)

    def _finished(self) -> _Counts:
        """Return for each model how many batches it has computed; a request that is cancelled counts for none."""
        stats = self._json("GET", "/v2/models/stats")["model_stats"]
        return {model["name"]: int(model["execution_count"]) for model in stats}

    def _json(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Any:
        status, content = self._ask(method, path, body, headers, SILENCE_SECONDS)
        if status != http.HTTPStatus.OK:
            raise http.client.HTTPException(f"{path}: {status}")
        return json.loads(content)

    def _ask(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str] | None, seconds: float
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._url, timeout=seconds)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def _may_hang(status: int, content: bytes) -> bool:
    """Say whether Triton answers so for a process that hangs: it does not answer, or its queue is full.

    A process that refuses a request in words of its own lives.
    """
    if status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        return b"maximum queue size" in content or b"timeout expired" in content
    return status == http.HTTPStatus.INTERNAL_SERVER_ERROR


def _request(
    inputs: Sequence[tuple[str, str, list[int], bytes]], outputs: Sequence[str]
) -> tuple[dict[str, str], bytes]:
    """Return headers and body of a request in Triton's HTTP with binary data; without ``outputs`` it gets all."""
    head: dict[str, Any] = {
        "id": "canary",
        "inputs": [
            {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(data)}}
            for name, kind, shape, data in inputs
        ],
    }
    if outputs:
        head["outputs"] = [{"name": name} for name in outputs]
    text = json.dumps(head).encode()
    return {"Inference-Header-Content-Length": str(len(text))}, b"".join([text, *(data for *_, data in inputs)])


def _texts(config: dict[str, Any]) -> dict[str, str]:
    return {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
