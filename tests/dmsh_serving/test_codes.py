import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dmsh_serving.codes import bytes_per_code, check_codes, pack, unpack
from dmsh_serving.errors import InputError

bit_arrays = st.tuples(st.integers(0, 5), st.integers(1, 140)).flatmap(
    lambda shape: hnp.arrays(np.uint8, shape, elements=st.integers(0, 1))
)
logits = st.tuples(st.integers(0, 5), st.integers(1, 40)).flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-(2.0**100), 2.0**100, width=32))
)


@given(bit_arrays)
def test_unpacking_gives_back_the_packed_bits(bits):
    codes = pack(bits)
    assert codes.shape == (len(bits), bytes_per_code(bits.shape[1]))
    assert np.array_equal(unpack(codes, bits.shape[1]), bits)


@given(logits)
def test_bit_j_is_one_exactly_where_logit_j_is_positive(values):
    codes = pack(values)
    for row, code in zip(values, codes, strict=True):
        for j, value in enumerate(row):
            assert (int(code[j // 8]) >> (7 - j % 8)) & 1 == (value > 0)  # most significant bit first
    assert np.array_equal(unpack(codes, values.shape[1]), values > 0)


def test_both_zeros_give_a_zero_bit_and_the_smallest_positive_number_a_one():
    assert pack(np.array([[0.0, -0.0, np.nextafter(np.float32(0), np.float32(1))]], np.float32)).tolist() == [
        [0b00100000]
    ]


def test_a_known_code_has_its_first_bit_in_the_top_and_zero_fill():
    assert pack(np.array([[True, False, False, False, False, False, False, False, True]])).tolist() == [[0x80, 0x80]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_an_error_that_names_its_row(bad):
    values = np.ones((3, 5), np.float32)
    values[1, 2] = bad
    with pytest.raises(InputError, match="row 1 hold NaN or Inf"):
        pack(values)


@pytest.mark.parametrize("shape", [(4,), (2, 0), (2, 1025), (1, 2, 3)])
def test_a_shape_that_is_no_batch_of_codes_is_refused(shape):
    with pytest.raises(InputError):
        pack(np.zeros(shape, np.float32))


def test_a_set_fill_bit_is_refused_whichever_it_is():
    for fill in range(3):
        codes = np.array([[0xFF, 1 << fill]], np.uint8)
        with pytest.raises(InputError, match="beyond bit 13"):
            check_codes(codes, 13)
    check_codes(np.array([[0xFF, 1 << 3]], np.uint8), 13)


@pytest.mark.parametrize("codes", [np.zeros((2, 3), np.uint8), np.zeros((2, 2), np.int8), np.zeros(2, np.uint8)])
def test_codes_of_another_width_or_dtype_are_refused(codes):
    with pytest.raises(InputError, match="must be uint8"):
        unpack(codes, 16)


@pytest.mark.parametrize("dtype", [object, complex, "U1"])
def test_values_that_are_no_real_numbers_are_refused(dtype):
    with pytest.raises(InputError, match="must be numbers"):
        pack(np.ones((2, 8), dtype))
