"""Loops of requests: who waits for whom, and from when a latency counts."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dmsh_serving.errors import InputError
from dmsh_serving.load import send
from dmsh_serving.load.send import UNSENT, Closed, Open, sending


class Fake:
    """Answers after ``seconds``, ``at_once`` requests at a time; knows how many it had at most."""

    def __init__(self, seconds, at_once=64, error=None):
        self.seconds, self.error = seconds, error
        self._pool, self._lock = ThreadPoolExecutor(at_once), threading.Lock()
        self.now = self.most = 0

    def call(self):
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.seconds)
        with self._lock:
            self.now -= 1
        return self.error

    def start(self, done):
        self._pool.submit(lambda: done(self.call()))


def sent_for(seconds, sender, load, drain=5.0):
    ended = []
    with sending(sender, load, ended, drain):
        time.sleep(seconds)
    return ended


def test_a_closed_loop_has_as_many_requests_in_flight_as_clients():
    sender = Fake(0.02)
    ended = sent_for(0.3, sender, Closed(3))
    assert sender.most == 3
    assert 15 <= len(ended) <= 48
    assert min(request.seconds for request in ended) >= 0.02


def test_an_open_loop_sends_at_its_rate_whatever_the_answers_do():
    sender = Fake(0.2)
    ended = sent_for(0.5, sender, Open(100, "fixed"))
    assert 40 <= len(ended) <= 56, "all that were sent are waited for"
    assert sender.most >= 15
    due = np.sort([request.due for request in ended])
    np.testing.assert_allclose(np.diff(due), 0.01, atol=1e-9)


def test_a_server_that_stands_still_delays_every_request_that_was_due_meanwhile():
    """Coordinated omission: a loop that waits would send nothing meanwhile, and count one slow request."""
    sender = Fake(0.1, at_once=1)  # 10 per second, asked for 50
    ended = sent_for(0.4, sender, Open(50, "fixed"))
    latencies = sorted(request.seconds for request in ended)
    assert len(latencies) >= 15
    assert latencies[len(latencies) // 2] > 0.4
    assert latencies[-1] > 1.2


def test_chance_makes_gaps_of_the_mean_that_the_rate_says_and_the_same_each_time():
    first, second = (list(zip(range(20_000), send._times(Open(100), 5.0), strict=False)) for _ in range(2))
    assert first == second
    gaps = np.diff([due for _, due in first])
    assert abs(gaps.mean() - 0.01) < 3e-4
    assert abs(gaps.std() - 0.01) < 5e-4, "exponential: as wide as its mean"


def test_requests_beyond_the_most_that_wait_are_counted_as_unsent(monkeypatch):
    monkeypatch.setattr(send, "MOST_WAITING", 5)
    ended = sent_for(0.3, Fake(0.5), Open(100, "fixed"))
    assert sum(request.error == UNSENT for request in ended) > 10
    assert sum(request.error is None for request in ended) == 5


def test_an_error_is_kept_with_its_request():
    assert {request.error for request in sent_for(0.05, Fake(0.01, error="INTERNAL"), Closed(1))} == {"INTERNAL"}


def test_a_request_that_never_ends_is_not_waited_for_for_ever():
    begun = time.monotonic()
    sent_for(0.1, Fake(5, at_once=1), Closed(1), drain=0.2)
    assert time.monotonic() - begun < 4


@pytest.mark.parametrize("wrong", [lambda: Closed(0), lambda: Open(0), lambda: Open(float("nan")), lambda: Open(1e9)])
def test_a_load_that_is_none_is_refused(wrong):
    with pytest.raises(InputError, match="give"):
        wrong()
