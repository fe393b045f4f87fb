"""Spreading codes of any width into slots of a power of two, zero bytes after each: compiled once for each width.

Imports numba, so it is itself imported on first use. A vector of 64 bytes of slots is one unaligned load and one
constant byte shuffle (AVX-512 VBMI; LLVM finds other ways where the CPU has none).
"""

import functools
from typing import Any, Final

from llvmlite import ir  # type: ignore[import-untyped]

from dmsh_serving.native import (
    cgutils,
    compiled,
    entry,
    literal_intrinsic,
    load_u8,
    load_unaligned,
    place,
    store_u8,
    types,
)

_VECTOR: Final = 64
_I64 = ir.IntType(64)


@functools.cache
def spread_for(width: int, slot: int) -> int:
    """Return the address of ``uint64(int64 codes, int64 left, int64 count, int64 out)`` for codes of ``width`` bytes.

    It writes ``count`` codes into slots at ``out``, reads nothing beyond the ``left`` codes that lie at ``codes``, and
    returns 0.
    """
    return _compile(width, slot).address  # type: ignore[no-any-return]


@functools.cache
def _compile(width: int, slot: int) -> Any:
    codes_a_vector, vectors_a_code = max(1, _VECTOR // slot), max(1, slot // _VECTOR)
    reach = vectors_a_code * _VECTOR  # bytes that a step reads

    @entry("uint64(int64, int64, int64, int64)")
    def spread(codes: int, left: int, count: int, out: int) -> int:
        steps = 0  # whole vectors, as long as their loads end within the codes; then byte by byte
        if left * width >= reach:
            steps = min(count // codes_a_vector, (left * width - reach) // (codes_a_vector * width) + 1)
        _spread_vectors(width, slot, codes, steps, out)
        _spread_bytes(codes, width, steps * codes_a_vector, count, out, slot)
        return 0

    return spread


@compiled("void(int64, int64, int64, int64, int64, int64)")
def _spread_bytes(codes: int, width: int, first: int, last: int, out: int, slot: int) -> None:
    for i in range(first, last):
        for byte in range(width):
            store_u8(out + i * slot + byte, load_u8(codes + i * width + byte))
        for byte in range(width, slot):
            store_u8(out + i * slot + byte, 0)


@literal_intrinsic
def _spread_vectors(typing: Any, width: Any, slot: Any, codes: Any, steps: Any, out: Any) -> Any:
    if not (isinstance(width, types.IntegerLiteral) and isinstance(slot, types.IntegerLiteral)):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, codes, steps, out = arguments
        code_bytes, slot_bytes = width.literal_value, slot.literal_value
        codes_a_vector, vectors_a_code = max(1, _VECTOR // slot_bytes), max(1, slot_bytes // _VECTOR)
        kind = ir.VectorType(ir.IntType(8), _VECTOR)
        zeros = ir.Constant(kind, [0] * _VECTOR)
        with cgutils.for_range(builder, steps, intp=_I64) as loop:
            source = builder.add(codes, builder.mul(loop.index, _I64(codes_a_vector * code_bytes)))
            target = builder.add(out, builder.mul(loop.index, _I64(codes_a_vector * slot_bytes)))
            for index in range(vectors_a_code):
                vector = load_unaligned(builder, builder.add(source, _I64(index * _VECTOR)), kind)
                lanes = []
                for byte in range(_VECTOR):
                    code, offset = divmod(index * _VECTOR + byte, slot_bytes)
                    lanes.append(code * code_bytes + offset - index * _VECTOR if offset < code_bytes else _VECTOR)
                mask = ir.Constant(ir.VectorType(ir.IntType(32), _VECTOR), lanes)
                spread = builder.shuffle_vector(vector, zeros, mask)
                builder.store(spread, place(builder, builder.add(target, _I64(index * _VECTOR)), kind)).align = 1
        return context.get_dummy_value()

    return types.void(width, slot, types.int64, types.int64, types.int64), generate
