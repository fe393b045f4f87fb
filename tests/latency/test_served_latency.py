"""How long an answer takes, over gRPC, and that none is forgotten. Figures are printed: pytest -rP tests/latency."""

import itertools

import pytest

from dmsh_serving.encoder.onnxruntime import OnnxEncoder
from dmsh_serving.hamming.nearest import search
from dmsh_serving.load.measure import Measuring, measure
from dmsh_serving.load.send import Closed, Open
from dmsh_serving.load.triton import TritonTarget

pytestmark = pytest.mark.live

MEASURING = Measuring(warm_up_seconds=0.3, window_seconds=1.0, most_windows=3)
# Triton's batcher looks again after 500 ms when it missed a wake-up; with a limited queue 1 in 100 requests meets that.
FORGOTTEN_SECONDS = 0.4


class InProcess:
    """Calls ``function`` with one image after the other."""

    def __init__(self, function, images):
        self._function, self._images = function, itertools.cycle(images)

    def call(self):
        self._function(next(self._images)[None])


def say(name, found):
    print(f"{name}: {found.requests_per_s:.0f}/s, p50 {found.milliseconds('p50'):.2f} ms, "
          f"p90 {found.milliseconds('p90'):.2f} ms, longest {found.milliseconds('max'):.1f} ms")  # fmt: skip


@pytest.mark.parametrize("load", [Closed(1), Open(100)], ids=["closed", "open"])
@pytest.mark.parametrize("model", ["dmsh_encoder", "dmsh_search"])
def test_a_lone_request_is_answered_at_once_and_none_is_forgotten(served, mnist, split, model, load):
    with TritonTarget(served.url, model, mnist.images[split.query], batch=1, k=10, timeout=10) as target:
        found = measure(target, load, measuring=MEASURING, counts=target.counts)
    say(f"Triton, {model}, {load}", found)
    assert not found.errors
    assert len(found.seconds) > 200
    assert (found.seconds > FORGOTTEN_SECONDS).sum() < max(1, len(found.seconds) // 200)


def test_what_the_server_says_of_its_models_fits_into_what_the_client_waits(served, mnist, split):
    with TritonTarget(served.url, "dmsh_search", mnist.images[split.query], batch=1, k=10, timeout=10) as target:
        found = measure(target, Closed(1), measuring=MEASURING, counts=target.counts)
    models = {model.model: model for model in found.models}
    assert {"dmsh_search", "dmsh_encoder", "dmsh_ranker"} <= set(models)  # the canary asks others too
    # Means over not quite the same requests: the server's have the canary's too, and those that a window cuts.
    waited = 1.5e3 * found.seconds.mean()
    assert models["dmsh_encoder"].total_ms + models["dmsh_ranker"].total_ms < waited
    assert models["dmsh_search"].total_ms < waited
    assert abs(models["dmsh_search"].requests - len(found.seconds)) <= 2 + len(found.seconds) // 100


def test_the_same_work_in_process_is_printed_beside_it(demo_exports, mnist, codes, split):
    database = codes[split.database]
    with OnnxEncoder(demo_exports["folded"].path, threads=2) as encoder:
        sender = InProcess(
            lambda image: search(encoder.infer(image).code, database, 10, threads=1), mnist.images[split.query]
        )
        sender.call()  # compiles, where nobody has yet
        found = measure(sender, Closed(1), measuring=MEASURING)
    say("encoder and ranker, in process", found)
    assert not found.errors
