"""Timing: the right calls, counted once, in the unit the table says."""

import numpy as np
import pytest

from dmsh_export.compare.latency import WARM_UP_ROUNDS, latency_from_seconds, measure
from dmsh_serving.errors import InputError

IMAGES = np.zeros((3, 4, 4, 3), np.uint8)


class Counting:
    image_size = 4

    def __init__(self, name, log):
        self.name, self.log = name, log

    def __enter__(self):
        self.log.append(f"{self.name} opens")
        return self

    def __exit__(self, *_):
        self.log.append(f"{self.name} closes")

    def infer(self, images):
        self.log.append((self.name, len(images)))


def test_rounds_are_interleaved_and_warm_up_is_not_counted():
    log = []
    rows = measure([Counting("a", log), Counting("b", log)], lambda size: IMAGES, batch=5, rounds=4)
    assert [row.rounds for row in rows] == [4, 4]
    assert log == ["a opens", "b opens", *[("a", 5), ("b", 5)] * (4 + WARM_UP_ROUNDS), "b closes", "a closes"]


def test_every_runner_is_opened_once_and_images_of_different_sizes_are_refused_before_any_is_timed():
    log = []
    small, large = Counting("small", log), Counting("large", log)
    large.image_size = 8
    with pytest.raises(InputError, match="images of different sizes: 4, 8"):
        measure([large, small], lambda size: IMAGES, batch=1, rounds=1)
    assert log == ["large opens", "small opens", "small closes", "large closes"]


def test_percentiles_are_milliseconds_and_images_per_second_follow_the_median():
    row = latency_from_seconds("x", 8, [0.001] * 98 + [0.5, 0.5])
    assert row.p50_ms == pytest.approx(1)
    assert row.p90_ms == pytest.approx(1)
    assert row.p99_ms > 100
    assert row.images_per_s == pytest.approx(8000)
