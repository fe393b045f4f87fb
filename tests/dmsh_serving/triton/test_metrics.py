"""What is counted, and how it is handed on."""

import sys
import time
import types

import pytest

VALUES = {}


class Family:
    """Stands for one of Triton's."""

    COUNTER, GAUGE = "counter", "gauge"

    def __init__(self, name, description, kind):
        self.name = name

    def Metric(self, labels):  # noqa: N802 - as Triton calls it
        return Value((self.name, *labels.values()))


class Value:
    def __init__(self, name):
        self.name = name
        VALUES[name] = 0

    def increment(self, by):
        VALUES[self.name] += by

    def set(self, value):
        VALUES[self.name] = value


@pytest.fixture
def metrics(monkeypatch):
    VALUES.clear()
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.SimpleNamespace(MetricFamily=Family))
    from dmsh_serving.triton import metrics

    return metrics


def test_a_histogram_counts_every_request_up_to_each_edge(metrics):
    counted = metrics.ModelMetrics("decode")
    counted.answered(3, 0.001)
    counted.answered(1, 0.02)
    counted.answered(2, 99.0)
    assert not any(VALUES.values())  # nobody waits for the server's process
    for _ in range(2):
        counted.report()
    bucket = {name[1]: value for name, value in VALUES.items() if name[0] == "dmsh_decode_seconds_bucket"}
    assert (bucket["0.0005"], bucket["0.001"], bucket["0.01"], bucket["0.025"]) == (0, 3, 3, 4)
    assert (bucket["10"], bucket["+Inf"]) == (4, 6)
    assert VALUES[("dmsh_decode_seconds_count",)] == 6
    assert VALUES[("dmsh_decode_seconds_sum",)] == pytest.approx(3 * 0.001 + 0.02 + 2 * 99.0)


def test_refusals_are_counted_by_their_reason(metrics):
    counted = metrics.ModelMetrics("encode")
    for reason in ("invalid", "invalid", "internal"):
        counted.request_refused(reason)
    counted.report()
    found = {name[1]: value for name, value in VALUES.items() if name[0] == "dmsh_encode_refused_total"}
    assert found == {"unreadable": 0, "invalid": 2, "unavailable": 0, "internal": 1}


def test_a_models_own_thread_hands_on_until_it_is_closed(metrics, monkeypatch):
    monkeypatch.setattr(metrics, "_REPORT_SECONDS", 0.01)
    counted = metrics.ModelMetrics("decode")
    counted.start()
    counted.answered(1, 0.5)
    deadline = time.monotonic() + 10
    while not VALUES[("dmsh_decode_seconds_count",)]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    counted.close()
    assert not counted._reporter.is_alive()


def test_the_launcher_tells_how_often_it_started_the_server_again(metrics, monkeypatch):
    monkeypatch.setenv(metrics.RESTARTS_VARIABLE, "3")
    ranker = metrics.RankerMetrics()
    assert VALUES[("dmsh_restarts",)] == 3
    ranker.wanted("00000012-abcdef01")
    ranker.opened(1.5)
    ranker.report()
    assert VALUES[("dmsh_gallery_wanted_version_number",)] == 12
    assert VALUES[("dmsh_gallery_swap_seconds_total",)] == 1.5
    assert abs(VALUES[("dmsh_gallery_looked_timestamp_seconds",)] - time.time()) < 60
