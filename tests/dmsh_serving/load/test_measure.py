"""Windows until they agree; percentiles that a request really had."""

import itertools
import json
import time

import numpy as np
import pytest

from dmsh_serving.load import measure as measuring_module
from dmsh_serving.load.measure import Measured, Measuring, measure
from dmsh_serving.load.send import Closed, Open, Request
from dmsh_serving.load.split import ModelCounts

SHORT = Measuring(warm_up_seconds=0.05, window_seconds=0.1, most_windows=6)


class Steady:
    """Takes the next of ``seconds`` for each request."""

    def __init__(self, *seconds):
        self._seconds = itertools.cycle(seconds)

    def call(self):
        time.sleep(next(self._seconds))

    def start(self, done):
        done(self.call())


def measured(seconds, errors=None, span=1.0, batch=1):
    seconds = np.sort(np.array(seconds, np.float64))
    return Measured(Closed(1), batch, True, span, seconds, len(seconds), errors or {})


def test_a_steady_server_is_stable_after_three_windows():
    numbers = []
    found = measure(Steady(0.002), Closed(1), measuring=SHORT, on_window=numbers.append)
    assert found.stable
    assert 3 <= numbers[-1] <= 6
    assert 50 < found.requests_per_s < 500
    assert 2 <= found.milliseconds("p50") < 20
    assert found.errors == {}


def test_a_server_that_grows_slower_is_never_stable_and_said_to_be_so():
    class Slower:
        def __init__(self):
            self.begun = time.monotonic()

        def call(self):
            time.sleep(0.001 + 0.02 * (time.monotonic() - self.begun))

    found = measure(Slower(), Closed(1), measuring=SHORT)
    assert not found.stable


def test_images_per_second_are_requests_times_their_batch():
    found = measured([0.1] * 30, span=2.0, batch=8)
    assert (found.requests_per_s, found.images_per_s) == (15, 120)


def test_a_percentile_is_the_latency_of_a_request():
    found = measured(np.arange(1, 1001) / 1000)
    assert [found.milliseconds(name) for name in ("p50", "p90", "p99", "p99.9", "max")] == [500, 900, 990, 999, 1000]


def test_a_percentile_that_too_few_requests_can_tell_is_none():
    found = measured(np.arange(1, 100) / 1000)
    assert found.milliseconds("p99") is None
    assert found.milliseconds("p90") == 90
    assert measured([0.001] * 100).milliseconds("p99") == 1
    assert measured([]).milliseconds("max") is None


def test_a_failed_request_took_for_ever_if_failures_count():
    found = measured([0.001] * 98, {"UNAVAILABLE": 2})
    assert found.milliseconds("p90", with_failed=True) == 1
    assert found.milliseconds("p99", with_failed=True) == float("inf")
    assert found.milliseconds("p90") == 1


def test_errors_are_counted_by_kind_and_are_no_throughput():
    class Failing:
        answers = itertools.cycle([None, "UNAVAILABLE", "INTERNAL", None])

        def call(self):
            time.sleep(0.001)
            return next(self.answers)

    found = measure(Failing(), Closed(1), measuring=SHORT)
    assert set(found.errors) == {"UNAVAILABLE", "INTERNAL"}
    assert abs(len(found.seconds) - sum(found.errors.values())) <= 3


@pytest.mark.parametrize(("load", "slowest"), [(Open(10), 8000), (Closed(1), 400)])
def test_a_request_of_an_open_loop_belongs_to_the_time_at_which_it_was_due(load, slowest):
    """Were only those counted that end in time, as in a closed loop, the slowest would be left out."""
    ended = [Request(0.1, 0.5, None), Request(0.9, 8.9, None), Request(1.5, 1.6, None), Request(-1, -0.5, None)]
    windows = [measuring_module._Window(0.0, 1.0, 1.0, 0.4)]
    found = measuring_module._measured(ended, load, 1, windows, (), True)
    assert found.milliseconds("max") == pytest.approx(slowest)
    assert found.completed == 1


def test_the_servers_own_account_is_that_of_the_measured_windows():
    said = itertools.count()

    def counts():
        calls = next(said) * 10
        return {"dmsh_encoder": ModelCounts(calls, 2 * calls, calls, 3_000_000 * calls, 1_000_000 * calls)}

    found = measure(Steady(0.002), Closed(1), measuring=SHORT, counts=counts)
    (model,) = found.models
    assert (model.model, model.requests, model.rows_per_call) == ("dmsh_encoder", 30, 2)
    assert (model.total_ms, model.queue_ms) == (3, 1)


def test_what_is_written_as_json_is_plain():
    found = measure(Steady(0.002), Open(100), measuring=SHORT)
    told = json.loads(json.dumps(found.to_dict()))
    assert told["load"] == {"kind": "open", "rate": 100, "arrivals": "poisson"}
    assert told["latency_ms"]["p99.9"] is None


@pytest.mark.parametrize("kind", [Closed(2), Open(50)])
def test_a_slow_server_gets_longer_windows_until_enough_requests_have_ended(kind):
    found = measure(Steady(0.02), kind, measuring=Measuring(0.0, 0.1, 3))
    assert len(found.seconds) >= 70
