"""Any page of an order, from any place in it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dmsh_serving.codes import unpack
from dmsh_serving.web.codes.collection import Collection
from dmsh_serving.web.codes.ranking import Cursor, Examples, ranking_of


def collection(count, bits, seed):
    generator = np.random.default_rng(seed)
    width = (bits + 7) // 8
    codes = generator.integers(0, 256, (count, width), dtype=np.uint8) & generator.choice(
        np.array([0x11, 0xFF], np.uint8)
    )
    codes[:, -1] &= 256 - (1 << (8 * width - bits)) & 0xFF
    ids = np.sort(generator.choice(10 * count + 1, count, replace=False))
    return Collection("v", bits, "f", ids, codes, None)


def oracle(held, like, unlike):
    """Bit by bit, and sorted as tuples."""
    bits = unpack(held.codes, held.bits).astype(int)
    score = np.zeros(len(held), int)
    for codes, sign in ((like, 1), (unlike, -1)):
        for code in unpack(codes, held.bits).astype(int):
            score += sign * (bits != code).sum(axis=1)
    return sorted(zip(score.tolist(), held.ids.tolist(), strict=True))


@given(
    st.integers(0, 60), st.sampled_from([1, 7, 8, 64, 65, 100]), st.integers(1, 3), st.integers(0, 2), st.integers(0, 9)
)
def test_the_order_is_that_of_score_and_id(count, bits, likes, unlikes, seed):
    held = collection(count, bits, seed)
    like, unlike = collection(likes, bits, seed + 100).codes, collection(unlikes, bits, seed + 200).codes
    order = ranking_of(held, Examples(like, unlike))
    assert list(zip(order.scores.tolist(), order.ids.tolist(), strict=True)) == oracle(held, like, unlike)
    np.testing.assert_array_equal(held.ids[order.places], order.ids)


@given(st.integers(1, 80), st.integers(1, 20), st.integers(0, 50))
def test_pages_of_any_size_repeat_nothing_and_leave_nothing_out(count, size, seed):
    held = collection(count, 16, seed)
    order = ranking_of(held, Examples(held.codes[:1], held.codes[:0]))
    seen, start = [], 0
    while start < len(order):
        seen += order.ids[start : start + size].tolist()
        last = min(start + size, len(order)) - 1
        start = order.after(Cursor(int(order.scores[last]), int(order.ids[last])))
    assert seen == order.ids.tolist()


def test_a_cursor_between_images_goes_on_with_the_next_greater():
    held = collection(50, 16, 3)
    order = ranking_of(held, Examples(held.codes[:1], held.codes[:0]))
    assert order.after(Cursor(-1, 10**9)) == 0
    assert order.after(Cursor(10**6, 0)) == len(order)
    middle = Cursor(int(order.scores[20]), int(order.ids[20]) - 1)
    assert order.after(middle) == 20


def test_only_what_every_list_allows_is_ordered():
    held = collection(50, 16, 3)
    order = ranking_of(held, Examples(held.codes[:1], held.codes[:0]), [np.arange(10, 30), np.arange(20, 50, 2)])
    assert sorted(order.places.tolist()) == [20, 22, 24, 26, 28]
    assert order.within(None) == 5
    assert order.within(int(order.scores[2])) >= 3
    assert order.within(-1) == 0
