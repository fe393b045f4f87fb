"""One timer for every comparison: turns in order, the right number of spans, nothing untimed counted."""

import time

import pytest

from dmsh_serving.timing import in_turns


def test_calls_take_turns_within_each_round_and_each_turn_is_counted():
    log = []
    seconds = in_turns([lambda: log.append("a"), lambda: log.append("b")], 3, spans=2)
    assert log == ["a", "a", "b", "b"] * 3
    assert [len(spent) for spent in seconds] == [6, 6]


def test_a_short_call_is_repeated_within_its_span_and_the_figure_is_per_call():
    ((spent, _),) = in_turns([lambda: time.sleep(0.002)], 2, span_seconds=0.02)
    assert 0.002 <= spent < 0.01


def test_what_is_untimed_is_not_counted():
    log = []
    (spent,) = in_turns([lambda: log.append("call")], 1, rest_seconds=0.05, warm_seconds=0.05)
    assert len(log) > 1
    assert spent[0] < 0.05


def test_a_call_that_takes_long_is_not_warmed_up_again():
    log = []
    in_turns([lambda: (log.append("call"), time.sleep(0.01))], 3, warm_seconds=0.001)
    assert len(log) == 1 + 3


def test_a_call_that_was_timed_for_long_enough_gets_no_further_turns():
    (slow, quick) = in_turns([lambda: time.sleep(0.005), lambda: None], 8, enough_seconds=0.001)
    assert (len(slow), len(quick)) == (3, 8)


def test_what_comes_before_a_round_is_told_its_number_and_is_not_timed():
    numbers = []

    def prepare(number):
        numbers.append(number)
        time.sleep(0.02)

    (spent,) = in_turns([lambda: None], 2, before_round=prepare)
    assert numbers == [0, 1]
    assert max(spent) == pytest.approx(0, abs=0.01)
