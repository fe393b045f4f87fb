import numpy as np
import pytest

from dmsh_serving.errors import InputError
from dmsh_serving.load.measure import Measured
from dmsh_serving.load.objectives import Objective, knee_of
from dmsh_serving.load.send import Closed


def at(clients, per_second, ms, errors=None):
    seconds = np.full(1000, ms / 1000)
    return Measured(Closed(clients), 1, True, 1000 / per_second, seconds, 1000, errors or {})


@pytest.mark.parametrize(
    ("text", "percentile", "most"),
    [("p99=5ms", "p99", 5), ("p99.9=0.5s", "p99.9", 500), ("max=20ms", "max", 20), ("p50=1.25ms", "p50", 1.25)],
)
def test_an_objective_is_read(text, percentile, most):
    assert Objective.parse(text) == Objective(percentile, most)


@pytest.mark.parametrize("text", ["p99", "p99=5", "p98=5ms", "p99<5ms", "p99=-1ms", "5ms", ""])
def test_what_is_no_objective_is_refused_with_an_example(text):
    with pytest.raises(InputError, match="write it as p99=5ms"):
        Objective.parse(text)


def test_an_objective_is_met_missed_or_cannot_be_told():
    objective = Objective.parse("p99=5ms")
    assert objective.missed_by(at(1, 100, 5)) is None
    assert "1 client: p99 <= 5 ms is missed: 5.5 ms" in objective.missed_by(at(1, 100, 5.5))
    few = Measured(Closed(1), 1, True, 1, np.full(20, 0.001), 20)
    assert "20 requests are too few" in objective.missed_by(few)


def test_requests_that_failed_miss_an_objective():
    assert "some never answered" in Objective.parse("p99=5ms").missed_by(at(1, 100, 1, {"UNAVAILABLE": 30}))
    assert Objective.parse("p90=5ms").missed_by(at(1, 100, 1, {"UNAVAILABLE": 30})) is None


def test_the_knee_is_where_throughput_per_latency_is_greatest():
    sweep = [at(1, 100, 10), at(2, 190, 10.5), at(4, 300, 13), at(8, 320, 25), at(16, 325, 49)]
    assert knee_of(sweep) is sweep[2]
    assert knee_of([]) is None
