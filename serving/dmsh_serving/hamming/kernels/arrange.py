"""Arrange codes of any width as :mod:`dmsh_serving.hamming.kernels.vectors` reads them; compiled once per width.

Imports numba, so it is itself imported on first use. One unaligned load and one constant byte shuffle fill a vector of
64 bytes with slots (AVX-512 VBMI; LLVM uses other instructions if the CPU lacks it).

Every function is ``uint64(int64 codes, int64 left, int64 count, int64 out)``. ``left`` codes lie at ``codes``; the
function writes ``count`` of them to ``out``, reads nothing beyond the ``left`` codes, and returns 0.
"""

import functools
from typing import Any, Final

from llvmlite import ir  # type: ignore[import-untyped]

from dmsh_serving.hamming.kernels.compile import compiled, entry
from dmsh_serving.hamming.kernels.intrinsics import (
    cgutils,
    copy_bytes,
    literal_intrinsic,
    load_u8,
    load_unaligned,
    place,
    store_u8,
    types,
)

__all__ = ["columns_for", "copy_for", "lane_mask", "slot_of", "slot_vector", "spread_for", "words_of"]

_VECTOR: Final = 64
_WORD: Final = 8
_LANES: Final = _VECTOR // _WORD
_I32, _I64 = ir.IntType(32), ir.IntType(64)


def slot_of(width: int) -> int:
    """Return the slot size for codes of ``width`` bytes: the next power of two."""
    return 1 << (width - 1).bit_length()


def words_of(width: int) -> int:
    """Return how many words of 8 bytes hold a code of ``width`` bytes."""
    return -(-width // _WORD)


@functools.cache
def copy_for(width: int) -> int:
    """Return the address of the function that copies codes unchanged into a buffer that is safe to over-read."""

    @entry("uint64(int64, int64, int64, int64)")
    def copy(codes: int, left: int, count: int, out: int) -> int:
        copy_bytes(out, codes, count * width)
        return 0

    return _address(copy)


@functools.cache
def spread_for(width: int) -> int:
    """Return the address of the function that writes each code to a slot and fills the slot with zero bytes."""
    slot = slot_of(width)

    @entry("uint64(int64, int64, int64, int64)")
    def spread(codes: int, left: int, count: int, out: int) -> int:
        steps = _whole_vectors(width, slot, left, count)
        _spread_vectors(width, slot, codes, steps, out)
        _spread_bytes(codes, width, steps * max(1, _VECTOR // slot), count, out, slot)
        return 0

    return _address(spread)


@functools.cache
def columns_for(width: int) -> int:
    """Return the address of the function that arranges codes of more than 8 bytes in columns, eight codes at a time."""
    slot = slot_of(width)

    @entry("uint64(int64, int64, int64, int64)")
    def columns(codes: int, left: int, count: int, out: int) -> int:
        # Whole tiles whose loads end within the codes. The other codes are first copied to slots in ``out``.
        whole = max(0, min(count, left - _VECTOR)) // _LANES
        _turn_into_columns(width, width, slot, codes, whole, out)
        tiles = (count + _LANES - 1) // _LANES
        _spread_bytes(codes, width, whole * _LANES, count, out, slot)
        target = out + whole * _LANES * _WORD * ((width + _WORD - 1) // _WORD)
        _turn_into_columns(width, slot, slot, out + whole * _LANES * slot, tiles - whole, target)
        return 0

    return _address(columns)


def _address(function: Any) -> int:
    return function.address  # type: ignore[no-any-return]


@compiled("int64(int64, int64, int64, int64)")
def _whole_vectors(width: int, slot: int, left: int, count: int) -> int:
    """Return how many whole vectors of ``count`` codes end within the ``left`` codes; the rest is copied by bytes."""
    codes_per_vector, reach = max(1, _VECTOR // slot), max(_VECTOR, slot)  # codes and bytes that one step reads
    if left * width < reach:
        return 0
    return min(count // codes_per_vector, (left * width - reach) // (codes_per_vector * width) + 1)


@compiled("void(int64, int64, int64, int64, int64, int64)")
def _spread_bytes(codes: int, width: int, first: int, last: int, out: int, slot: int) -> None:
    for i in range(first, last):
        for byte in range(width):
            store_u8(out + i * slot + byte, load_u8(codes + i * width + byte))
        for byte in range(width, slot):
            store_u8(out + i * slot + byte, 0)


def slot_vector(builder: Any, codes: Any, width: int, slot: int, index: int) -> Any:
    """Return, while code is generated, vector ``index`` of the codes at ``codes`` in their slots: 64 of i8.

    If the width is not the slot, up to 64 bytes beyond the codes of the vector are read.
    """
    kind = ir.VectorType(ir.IntType(8), _VECTOR)
    code, part = divmod(index * _VECTOR, slot)
    vector = load_unaligned(builder, builder.add(codes, _I64(code * width + part)), kind)
    if width == slot:
        return vector
    lanes = []
    for byte in range(_VECTOR):
        of_code, offset = divmod(part + byte, slot)
        lanes.append(of_code * width + offset - part if offset < width else _VECTOR)
    return builder.shuffle_vector(vector, ir.Constant(kind, [0] * _VECTOR), lane_mask(lanes))


@literal_intrinsic
def _spread_vectors(typing: Any, width: Any, slot: Any, codes: Any, steps: Any, out: Any) -> Any:
    if not (isinstance(width, types.IntegerLiteral) and isinstance(slot, types.IntegerLiteral)):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, codes, steps, out = arguments
        code_bytes, slot_bytes = width.literal_value, slot.literal_value
        codes_per_vector, vectors_per_code = max(1, _VECTOR // slot_bytes), max(1, slot_bytes // _VECTOR)
        with cgutils.for_range(builder, steps, intp=_I64) as loop:
            source = builder.add(codes, builder.mul(loop.index, _I64(codes_per_vector * code_bytes)))
            target = builder.add(out, builder.mul(loop.index, _I64(codes_per_vector * slot_bytes)))
            for index in range(vectors_per_code):
                vector = slot_vector(builder, source, code_bytes, slot_bytes, index)
                _store(builder, vector, builder.add(target, _I64(index * _VECTOR)))
        return context.get_dummy_value()

    return types.void(width, slot, types.int64, types.int64, types.int64), generate


@literal_intrinsic
def _turn_into_columns(typing: Any, width: Any, stride: Any, slot: Any, codes: Any, tiles: Any, out: Any) -> Any:
    """Turn tiles of eight codes, ``stride`` bytes apart, into columns; words beyond the width are left out.

    ``out`` may overlap the codes if it does not begin after them: a tile is read whole before it is written.
    """
    if not all(isinstance(each, types.IntegerLiteral) for each in (width, stride, slot)):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, _, codes, tiles, out = arguments
        step, slot_bytes, words = stride.literal_value, slot.literal_value, words_of(width.literal_value)
        kind = ir.VectorType(_I64, _LANES)
        with cgutils.for_range(builder, tiles, intp=_I64) as loop:
            source = builder.add(codes, builder.mul(loop.index, _I64(_LANES * step)))
            target = builder.add(out, builder.mul(loop.index, _I64(words * _VECTOR)))
            rows = [
                builder.bitcast(slot_vector(builder, source, step, slot_bytes, index), kind)
                for index in range(slot_bytes // _WORD)
            ]
            for index, column in enumerate(_transposed(builder, rows)[:words]):
                _store(builder, column, builder.add(target, _I64(index * _VECTOR)))
        return context.get_dummy_value()

    return types.void(width, stride, slot, types.int64, types.int64, types.int64), generate


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Return the columns of eight rows of len(rows) words: split even words from odd ones, then each half again."""
    if len(rows) == 1:
        return rows
    halves = [
        _transposed(
            builder,
            [
                builder.shuffle_vector(a, b, lane_mask(list(range(parity, 2 * _LANES, 2))))
                for a, b in zip(rows[::2], rows[1::2], strict=True)
            ],
        )
        for parity in (0, 1)
    ]
    return [column for pair in zip(*halves, strict=True) for column in pair]


def lane_mask(lanes: list[int]) -> Any:
    """Return the constant that a shuffle takes: for each lane of the result, the lane that it comes from."""
    return ir.Constant(ir.VectorType(_I32, len(lanes)), lanes)


def _store(builder: Any, vector: Any, at: Any) -> None:
    builder.store(vector, place(builder, at, vector.type)).align = 1
