"""What is said of a gallery is true of every pair and every bit."""

import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmsh_serving.codes import pack, uniform_codes, unpack
from dmsh_serving.errors import InputError
from dmsh_serving.web.codes import care
from dmsh_serving.web.codes.collection import Collection


def collection(codes, bits):
    return Collection("v", bits, "f", np.arange(len(codes)), codes, None)


def linked(bits, radius):
    """The obvious way: every pair, and a search through the graph; groups of two or more."""
    apart = (bits[:, None] != bits[None]).sum(axis=2)
    left, groups = set(range(len(bits))), []
    while left:
        group, waiting = set(), [min(left)]
        while waiting:
            each = waiting.pop()
            if each in left:
                left.remove(each)
                group.add(each)
                waiting += np.flatnonzero(apart[each] <= radius).tolist()
        if len(group) > 1:
            groups.append(sorted(group))
    return sorted(groups, key=lambda group: (-len(group), group[0]))


@given(st.integers(0, 60), st.sampled_from([8, 12, 64]), st.integers(0, 5), st.integers(0, 20))
def test_groups_are_the_chains_of_near_images(count, bits, radius, seed):
    codes = uniform_codes(count, bits, seed)
    codes[:, 0] &= 0x3C  # so that some are near
    if bits == 64:
        codes[:, 1:] = 0
    found = care.duplicates(collection(codes, bits), radius, groups=1000, members=1000)
    expected = linked(unpack(codes, bits), radius)
    assert [group.places.tolist() for group in found.groups] == expected
    assert (found.count, found.images) == (len(expected), sum(map(len, expected)))


def test_groups_and_members_are_cut_but_counted():
    codes = np.repeat(uniform_codes(5, 64, 0), [1, 4, 3, 2, 3], axis=0)
    found = care.shared(collection(codes, 64), groups=2, members=3)
    assert (found.count, found.images) == (4, 12)
    assert [(group.count, group.places.tolist()) for group in found.groups] == [(4, [1, 2, 3]), (3, [5, 6, 7])]


def test_too_much_work_is_refused_with_what_to_do(monkeypatch):
    held = collection(uniform_codes(300, 64, 0), 64)
    monkeypatch.setattr(care, "MOST_PAIRS", 10)
    with pytest.raises(InputError, match="over 10 pairs are within 40 bits: choose a smaller radius"):
        care.duplicates(held, 40, groups=1, members=1)
    monkeypatch.setattr(care, "MOST_COMPARED", 10)
    with pytest.raises(InputError, match="300 different codes are too many"):
        care.duplicates(held, 1, groups=1, members=1)
    assert care.duplicates(held, 0, groups=1, members=1).count == 0


def test_the_memory_that_a_large_radius_takes_is_bounded():
    held = collection(uniform_codes(60_000, 64, 0), 64)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="over 5,000,000 pairs are within 64 bits: choose a smaller radius"):
            care.duplicates(held, 64, groups=1, members=1)
        assert tracemalloc.get_traced_memory()[1] < 400 << 20  # with 512 queries at once, it is 745 MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("radius", [-1, 66, 1024])
def test_a_radius_that_no_two_codes_can_be_apart_is_refused(radius):
    held = collection(uniform_codes(9, 65, 0), 65)
    with pytest.raises(InputError, match=f"radius = {radius} is out of range: codes of 65 bits are 0 to that far"):
        care.duplicates(held, radius, groups=1, members=1)
    assert care.duplicates(held, 65, groups=1, members=9).groups[0].places.tolist() == list(range(9))


def test_nobody_waiting_ends_the_work():
    stop = threading.Event()
    stop.set()
    with pytest.raises(care.StoppedError):
        care.duplicates(collection(uniform_codes(9, 64, 0), 64), 1, groups=1, members=1, stop=stop)


def test_bits_are_measured():
    bits = unpack(uniform_codes(5000, 64, 1), 64)
    bits[:, 0] = 0
    bits[:, 1] = 1
    bits[:, 3] = bits[:, 2]
    bits[:, 5] = 1 - bits[:, 4]
    found = care.bit_statistics(collection(pack(bits), 64))
    assert (found.images, found.distinct) == (5000, 5000)
    np.testing.assert_allclose(found.ones, bits.mean(axis=0))
    assert [found.ones[0], found.ones[1]] == [0, 1]
    assert found.correlation[0].tolist() == [0] * 64
    assert [(i, j, round(value, 3)) for i, j, value in found.strongest[:2]] == [(2, 3, 1.0), (4, 5, -1.0)]
    varying = bits[:, 2:].astype(float)
    np.testing.assert_allclose(found.correlation[2:, 2:], np.corrcoef(varying.T), atol=1e-4)
    mean = found.distances @ np.arange(65) / found.distances.sum()
    assert abs(mean - 31) < 0.2


def test_a_correlation_plot_of_many_bits_shows_the_strongest_of_each_block():
    bits = unpack(uniform_codes(2000, 200, 2), 200)
    bits[:, 150] = 1 - bits[:, 7]
    found = care.bit_statistics(collection(pack(bits), 200)).correlation
    assert found.shape == (50, 50)
    assert found[1, 37] == pytest.approx(-1)
    assert abs(found[20, 20]) < 0.2


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_tiny_gallery_can_be_examined(count):
    held = collection(uniform_codes(count, 65, 0), 65)
    assert care.bit_statistics(held).images == count
    assert care.duplicates(held, 3, groups=1, members=1).count == 0
    assert care.shared(held, groups=1, members=1).count == 0
