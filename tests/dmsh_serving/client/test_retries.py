import pytest

from dmsh_serving.client.retries import Retries
from dmsh_serving.errors import InputError


def test_pauses_are_drawn_from_bounds_that_double_up_to_a_most():
    drawn = [list(Retries(6, 0.1, 1.0).pauses()) for _ in range(500)]
    highest = [max(column) for column in zip(*drawn, strict=True)]
    bounds = [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert all(0.8 * bound < found <= bound for found, bound in zip(highest, bounds, strict=True))
    assert min(min(column) for column in zip(*drawn, strict=True)) < 0.02, "clients do not come back together"


def test_no_retries_are_no_pauses():
    assert list(Retries(0).pauses()) == []


@pytest.mark.parametrize("wrong", [{"most": -1}, {"first_seconds": -1}, {"most_seconds": -0.1}])
def test_negative_numbers_are_refused(wrong):
    with pytest.raises(InputError, match="0 or more"):
        Retries(**wrong)
