"""Time a plain scan against clustered codes, and measure the mAP with and without re-ranking."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.rank.codes import CHECKPOINT, Codes, real_images
from benchmarks.rank.timing import milliseconds_in_turns
from dmsh_serving.errors import CheckError
from dmsh_serving.hamming import search
from dmsh_serving.hamming.clustered import cluster
from dmsh_serving.hamming.layout import choose_layout

__all__ = [
    "CLUSTERED",
    "PLAIN",
    "LayoutTiming",
    "RerankEffect",
    "demo_logits",
    "measure_layouts",
    "rerank_effect",
]

_QUERIES: Final = 200  # per turn, one after the other
PLAIN, CLUSTERED = "plain", "clustered"


@dataclass(frozen=True)
class LayoutTiming:
    """Milliseconds per lone query on one thread: the mean over the queries, then the median over the rounds."""

    kind: str
    codes: int
    distinct: int
    k: int
    plain_milliseconds: float
    clustered_milliseconds: float
    chosen: str
    reason: str

    @property
    def gain(self) -> float:
        """How many times faster clustered codes are searched than plain ones."""
        return self.plain_milliseconds / self.clustered_milliseconds


def measure_layouts(kind: str, codes: Codes, queries: Codes, ks: Sequence[int], rounds: int) -> list[LayoutTiming]:
    """Time both layouts of ``codes`` (N, B) uint8 with the first 200 of ``queries`` (Q, B), none of them in ``codes``.

    Raises:
        CheckError: the layouts gave different answers.
    """
    choice = choose_layout(codes)
    clustered = cluster(codes, np.arange(len(codes)))
    asked = [queries[i : i + 1] for i in range(min(_QUERIES, len(queries)))]
    timings = []
    for k in ks:
        distances, places = clustered.search(queries[: len(asked)], k)
        expected_distances, rows = search(queries[: len(asked)], codes, k)
        if not (np.array_equal(distances, expected_distances) and np.array_equal(clustered.ids[places], rows)):
            raise CheckError(f"plain and clustered {kind} codes give different answers for k = {k}")

        def plain(k: int = k) -> None:
            for query in asked:
                search(query, codes, k, threads=1)

        def skipping(k: int = k) -> None:
            for query in asked:
                clustered.search(query, k, threads=1)

        times = milliseconds_in_turns({PLAIN: plain, CLUSTERED: skipping}, rounds)
        plain_each, clustered_each = (times[name] / len(asked) for name in (PLAIN, CLUSTERED))
        timings.append(
            LayoutTiming(
                *(kind, len(codes), choice.distinct or 0, k), plain_each, clustered_each, choice.layout, choice.reason
            )
        )
    return timings


@dataclass(frozen=True)
class RerankEffect:
    """mAP@k of the demo model on MNIST-5k's held-out queries, in Hamming order and re-ranked."""

    k: int
    hamming: float
    asymmetric: float


def demo_logits() -> npt.NDArray[np.float32]:
    """Return the logits (5000, 64) float32 that the demo checkpoint gives to the unchanged images of MNIST-5k."""
    from dmsh_model import load

    return load(CHECKPOINT).logits(real_images()[0])


def rerank_effect(logits: npt.NDArray[np.float32], ks: Sequence[int]) -> list[RerankEffect]:
    """Measure the mAP on the split that the demo checkpoint was trained with; a k of 0 means the whole database."""
    from dmsh_model.data.load import MNIST_5K, load_labelled
    from dmsh_model.data.split import SplitOptions, split_images
    from dmsh_model.evaluation.mean_average_precision import mean_average_precision_of_answers
    from dmsh_serving.codes import pack
    from dmsh_serving.ranker.rerank import asymmetric_order

    data = load_labelled(MNIST_5K, 32)
    split = split_images(data, SplitOptions())
    codes = pack(logits)
    database = codes[split.database]
    labels = data.labels[split.query], data.labels[split.database]
    effects = []
    for k in ks:
        distances, rows = search(codes[split.query], database, k or len(database))
        order = asymmetric_order(logits[split.query], database[rows], distances, rows)
        before, after = (
            mean_average_precision_of_answers(found, *labels)
            for found in (rows, np.take_along_axis(rows, order, axis=1))
        )
        effects.append(RerankEffect(k, before, after))
    return effects
