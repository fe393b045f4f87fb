"""The tuner's last candidates are served by a real Triton, and what it chooses was measured there."""

import pytest
import tiny_model

from dmsh_export.tune.run import Effort, tune
from dmsh_serving.encoder import openvino
from dmsh_serving.errors import CheckError
from dmsh_serving.load.measure import Measuring

SHORT = Effort((1, 8), 2, 0.1, 2, (1, 4), Measuring(0.3, 0.3, 3))


@pytest.fixture
def models(tmp_path):
    """One file for each runtime that can serve here."""
    dialects = [None] if openvino.why_not_here(integer=True) else [None, "openvino"]
    return [
        tiny_model.write(tmp_path / f"{dialect}.onnx", **({} if dialect is None else {"dialect": dialect}))
        for dialect in dialects
    ]


def test_every_runtime_is_served_live_and_the_fastest_within_the_latency_is_chosen(models):
    tuning = tune(models, 1e4, SHORT)
    assert len({found.settings.runtime for found in tuning.live}) == len(models)
    assert {found.load.clients for found in tuning.live} == {1, 4}
    assert all(found.load.requests > 0 and 0 < found.load.p50_ms <= found.load.p99_ms for found in tuning.live)
    assert tuning.chosen.load.images_per_s == max(found.load.images_per_s for found in tuning.live)


def test_a_latency_that_no_server_meets_says_the_best(models):
    with pytest.raises(CheckError, match=r"no setting answers within 0\.001 ms \(p99\): the best is [\d.]+ ms, with"):
        tune(models[:1], 0.001, SHORT)
