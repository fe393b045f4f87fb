import numpy as np
import pytest

from dmsh_serving.hamming import sorting as ascending
from dmsh_serving.hamming.sorting import ascends, ascends_within, codes_ascend

BLOCK = 1 << 15
COUNTS = [0, 1, 2, 100, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 2, 3 * BLOCK + 7]


@pytest.fixture(params=["one thread", "every CPU"], autouse=True)
def threads(request, monkeypatch):
    if request.param == "every CPU":
        monkeypatch.setattr(ascending, "_WORTH_THREADS", 2)


def places(count):
    """Where to break an array of ``count``: at its ends and around the edges of blocks."""
    return sorted({at for edge in range(0, count + BLOCK, BLOCK) for at in range(edge - 2, edge + 3) if 0 < at < count})


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_numbers_ascend_unless_one_anywhere_repeats_or_falls(count, kind):
    values = np.arange(count, dtype=kind)
    assert ascends(values)
    for at in places(count):
        for wrong in (values[at - 1], 0):
            broken = values.copy()
            broken[at] = wrong
            assert not ascends(broken), at


@pytest.mark.parametrize("width", [3, 8, 10, 16])
def test_codes_ascend_in_byte_order_unless_one_anywhere_repeats_or_falls(width):
    count = BLOCK + 5
    codes = np.zeros((count, width), np.uint8)
    codes[:, -3:] = np.arange(count, dtype=">u4").view(np.uint8).reshape(-1, 4)[:, 1:]
    assert codes_ascend(codes)
    assert codes_ascend(codes[:0])
    for at in places(count):
        for wrong in (codes[at - 1], 0):
            broken = codes.copy()
            broken[at] = wrong
            assert not codes_ascend(broken), at


@pytest.mark.parametrize("count", [1, 50, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
def test_numbers_ascend_within_groups_and_may_fall_only_between_them(count):
    random = np.random.default_rng(count)
    starts = np.concatenate([[0], np.cumsum(random.integers(1, 4, count))]).astype(np.int32)
    group = np.repeat(np.arange(count), np.diff(starts))
    values = np.arange(starts[-1]) - starts[group]  # each group begins at 0 anew
    assert ascends_within(starts, values)
    inside = np.flatnonzero(group[1:] == group[:-1]) + 1
    for at in {
        *inside[:3].tolist(),
        *inside[-3:].tolist(),
        *inside[np.searchsorted(inside, starts[BLOCK:][:3])[:3] - 1],
    }:
        broken = values.copy()
        broken[at] = broken[at - 1]
        assert not ascends_within(starts, broken), at


def test_no_groups_at_all_ascend():
    assert ascends_within(np.zeros(1, np.int32), np.zeros(0, np.int32))
