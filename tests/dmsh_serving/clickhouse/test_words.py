import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmsh_serving.clickhouse.words import checksum, codes_of_words, word_names, words_of_codes
from dmsh_serving.codes import uniform_codes


@pytest.mark.parametrize("bits", [1, 12, 16, 64, 65, 128, 250, 1024])
def test_words_hold_the_codes_and_their_distances(bits):
    codes = uniform_codes(40, bits, seed=bits)
    words = words_of_codes(codes)
    assert words.shape == (40, len(word_names(bits)))
    np.testing.assert_array_equal(codes_of_words(words, bits), codes)
    apart = np.unpackbits(codes[0] ^ codes, axis=1).sum(axis=1)
    in_words = [sum(int(word).bit_count() for word in row) for row in words[0] ^ words]
    np.testing.assert_array_equal(in_words, apart)


@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**64 - 1)), min_size=2, max_size=20), st.data())
def test_a_checksum_knows_no_order_and_sees_a_changed_a_missing_and_a_doubled_row(rows, data):
    def of(some):
        return checksum([np.array([a for a, _ in some], np.int64), np.array([b for _, b in some], np.uint64)])

    place, bit = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, 63))
    number, word = rows[place]
    whole = of(rows)
    assert of(rows[::-1]) == whole
    assert of([*rows[:place], (number, word ^ (1 << bit)), *rows[place + 1 :]]) != whole
    assert of(rows[:place] + rows[place + 1 :]) != whole
    assert of([*rows, rows[place]]) != whole
