"""How long an answer takes, over gRPC, and that none is forgotten. Figures are printed: pytest -rP tests/latency."""

import time

import numpy as np
import pytest

from dmsh_export.compare.latency import latency_from_seconds
from dmsh_serving.client import SearchClient
from dmsh_serving.encoder.runtime import OnnxEncoder
from dmsh_serving.hamming.nearest import search

pytestmark = pytest.mark.live

CALLS = 1000
# Triton's batcher looks again after 500 ms when it missed a wake-up; with a limited queue 1 in 100 requests meets that.
FORGOTTEN_SECONDS = 0.4


def seconds_of(call, images):
    call(images[:1])
    seconds = []
    for number in range(CALLS):
        image = images[number % len(images)][None]
        start = time.perf_counter()
        call(image)
        seconds.append(time.perf_counter() - start)
    return np.array(seconds)


def test_a_lone_request_is_answered_at_once_and_none_is_forgotten(served, demo_exports, mnist, codes, split):
    queries, database = mnist.images[split.query], codes[split.database]
    with SearchClient(served.url) as client, OnnxEncoder(demo_exports["folded"].path, threads=2) as encoder:
        measured = {
            "encoder and ranker, in process": seconds_of(
                lambda image: search(encoder.infer(image).code, database, 10, threads=1), queries
            ),
            "Triton: encoder": seconds_of(client.encode, queries),
            "Triton: image -> neighbours": seconds_of(lambda image: client.search(image, k=10), queries),
        }
    for name, seconds in measured.items():
        row = latency_from_seconds(name, 1, seconds)
        print(f"{name}: p50 {row.p50_ms:.2f} ms, p99 {row.p99_ms:.2f} ms, longest {1e3 * seconds.max():.1f} ms")
        assert (seconds > FORGOTTEN_SECONDS).sum() < CALLS // 200, name
