"""Every bit of all 5,000 images: PyTorch, ONNX folded and unfolded, and a live Triton; and the same answers."""

import numpy as np
import pytest

from dmsh_export.compare.parity import compare
from dmsh_export.compare.runners import OnnxRunner, TorchRunner, TritonRunner
from dmsh_model.evaluation.mean_average_precision import (
    mean_average_precision,
    mean_average_precision_of_answers,
)
from dmsh_serving.client import SearchClient
from dmsh_serving.hamming.oracle import search_oracle

pytestmark = pytest.mark.live


def test_all_320000_bits_of_a_live_triton_are_pytorchs(served, demo_model, mnist):
    target = TritonRunner(f"triton://{served.url}/dmsh_encoder")
    report = compare(TorchRunner(demo_model), [target], mnist.images, max_batch=32)
    assert report.targets[0].bits_compared == 320_000
    assert report.passed, report.summary()


@pytest.mark.parametrize(("threads", "optimise"), [(1, True), (2, False)])
def test_threads_and_graph_optimisation_change_no_bit(demo_model, demo_exports, mnist, threads, optimise):
    targets = [OnnxRunner(export.path, threads=threads, optimise=optimise) for export in demo_exports.values()]
    report = compare(TorchRunner(demo_model), targets, mnist.images[:1000], max_batch=32)
    assert report.passed, report.summary()


def test_triton_ranks_as_the_oracle_ranks_pytorchs_codes(served, mnist, codes, split):
    distances, rows = search_oracle(codes[split.query], codes[split.database], 100)
    with SearchClient(served.url) as client:
        answer = client.search(mnist.images[split.query], k=100)
    np.testing.assert_array_equal(answer.ids, rows)
    np.testing.assert_array_equal(answer.distances, distances)
    np.testing.assert_array_equal(answer.code, codes[split.query])
    expected = np.array(mnist.names, dtype=object)[split.database[rows]]
    np.testing.assert_array_equal(answer.keys, expected)


def test_the_map_of_tritons_answers_is_that_of_pytorchs_codes(served, mnist, codes, split):
    queries, database = mnist.labels[split.query], mnist.labels[split.database]
    with SearchClient(served.url) as client:
        answer = client.search(mnist.images[split.query], k=len(split.database))
    of_codes = mean_average_precision(codes[split.query], codes[split.database], queries, database)
    assert mean_average_precision_of_answers(answer.ids, queries, database) == of_codes
    assert of_codes >= 0.95
