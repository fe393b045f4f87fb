"""Is a server alive? A search for its canary tells: a process that hangs is there, and Triton calls it ready.

A search that is not answered may have met a busy server. So the server counts as hanging only if one of the models that
the search goes through finished no request at all while it waited, though the model before handed requests on.
"""

import http.client
import json
import threading
from collections.abc import Callable
from typing import Any, Final

from dmsh_serving.contract import CODE, DECODE_MODEL, ENCODER_MODEL, FILE, IDS, RANKER_MODEL, SEARCH_FILE_MODEL, K
from dmsh_serving.errors import DmshError
from dmsh_serving.triton.canary import Canary

__all__ = ["PATIENCE_SECONDS", "Vitals"]

EVERY_SECONDS: Final = 5.0
PATIENCE_SECONDS: Final = 15.0  # longer than a batch may take to decode, which is 10 s
GRACE_SECONDS: Final = 5.0  # for what was handed on a moment ago
_STEPS: Final = (DECODE_MODEL, ENCODER_MODEL, RANKER_MODEL)
# A server that is gone; or another program on its port, which may answer anything: the watch must go on.
_NO_ANSWER: Final = (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError)
_Counts = dict[str, tuple[int, int]]
"""For each model the batches that it has computed, and the requests that it answered well."""


class Vitals:
    """Searches for the canary of the server whose HTTP is at ``url``, again and again, in a thread of its own.

    ``on_event`` is told, once, if a search gives another code than the known one: a start anew would not mend that.

    Attributes:
        hanging: what hangs; None while nothing does.
        searches: how many searches were answered.
    """

    def __init__(self, url: str, on_event: Callable[[str], None]) -> None:
        self.hanging: str | None = None
        self.searches = 0
        self._url, self._on_event = url, on_event
        self._told = False
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
        try:
            before = self._finished()
            canary = Canary.from_parameters(_texts(self._json("GET", f"/v2/models/{DECODE_MODEL}/config")))
        except TimeoutError:
            return f"tritonserver gave no answer for {PATIENCE_SECONDS:g} s"
        except (*_NO_ANSWER, DmshError):
            return None  # it is gone, which the launcher sees by itself
        try:
            headers, body = _request(canary.file)
            found = self._json("POST", f"/v2/models/{SEARCH_FILE_MODEL}/infer", body, headers)
            (code,) = [bytes(output["data"]) for output in found["outputs"] if output["name"] == CODE]
        except TimeoutError:
            return self._without_progress(before)
        except _NO_ANSWER:
            return None  # refused, by a full queue for one: so it lives
        self.searches += 1
        bits = canary.differing_bits(code)
        if bits and not self._told:
            self._on_event(
                f"a search for the known image gives a code of which {bits} bits are wrong: stop this server"
            )
        self._told = bits > 0
        return None

    def _without_progress(self, before: _Counts) -> str | None:
        try:
            hanging = _hanging(before, self._finished())
            if hanging not in (None, DECODE_MODEL) and not self._stop.wait(GRACE_SECONDS):
                hanging = _hanging(before, self._finished())
        except _NO_ANSWER:
            return f"tritonserver gave no answer for {PATIENCE_SECONDS:g} s"
        return f"{hanging} finished no request for {PATIENCE_SECONDS:g} s" if hanging else None

    def _finished(self) -> _Counts:
        """Return what each model has done; a request that is cancelled counts for nothing."""
        stats = self._json("GET", "/v2/models/stats")["model_stats"]
        return {
            model["name"]: (int(model["execution_count"]), int(model["inference_stats"]["success"]["count"]))
            for model in stats
        }

    def _json(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Any:
        connection = http.client.HTTPConnection(self._url, timeout=PATIENCE_SECONDS)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != http.HTTPStatus.OK:
                raise http.client.HTTPException(f"{path}: {answer.status}")
            return json.loads(content)
        finally:
            connection.close()


def _hanging(before: _Counts, after: _Counts) -> str | None:
    """Return the first model that has computed nothing though requests have reached it, None if there is none."""
    for model in _STEPS:
        (ran, answered), (ran_before, answered_before) = (counts.get(model, (0, 0)) for counts in (after, before))
        if ran == ran_before:
            return model
        if answered == answered_before:  # all were refused, so none came to the next model
            return None
    return None


def _request(file: bytes) -> tuple[dict[str, str], bytes]:
    """Return headers and body of a search for the one nearest image of ``file``, in Triton's HTTP with binary data."""
    head = {
        "id": "canary",
        "inputs": [
            {"name": FILE, "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": 4 + len(file)}},
            {"name": K, "datatype": "INT64", "shape": [1, 1], "data": [1]},
        ],
        "outputs": [{"name": CODE}, {"name": IDS}],  # one of the last step: see docs/serving.md
    }
    text = json.dumps(head).encode()
    return {"Inference-Header-Content-Length": str(len(text))}, text + len(file).to_bytes(4, "little") + file


def _texts(config: dict[str, Any]) -> dict[str, str]:
    return {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
