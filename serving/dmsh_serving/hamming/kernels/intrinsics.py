"""Operations that numba lacks: data at an address, bit counts, atomic operations, calls by address.

Imports numba, so it is itself imported on first use.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils as _cgutils
from numba.core import types as _types
from numba.extending import intrinsic as _numba_intrinsic

from dmsh_serving.hamming.kernels.memory import LINE

__all__ = [
    "address_of",
    "atomic_add",
    "atomic_exchange",
    "atomic_load",
    "atomic_replace",
    "bits_below",
    "bits_true",
    "bytes_read",
    "call_entry",
    "call_kernel",
    "carray",
    "cgutils",
    "copy_bytes",
    "line_from",
    "literal_intrinsic",
    "load_u8",
    "load_unaligned",
    "place",
    "pointer_i32",
    "pointer_i64",
    "pointer_to",
    "pointer_u8",
    "pointer_u16",
    "pointer_u64",
    "popcount",
    "read_file",
    "record_at",
    "record_type",
    "store_u8",
    "trailing_zeros",
    "types",
    "write_file",
    "yield_cpu",
]

carray: Any = numba.carray  # type: ignore[attr-defined]  # (pointer, shape) -> array
cgutils: Any = _cgutils
types: Any = _types

# numba types it as the function that it decorates, not as the function that callers see.
intrinsic: Callable[[Callable[..., Any]], Any] = _numba_intrinsic
literal_intrinsic: Callable[[Callable[..., Any]], Any] = _numba_intrinsic(prefer_literal=True)

bytes_read: Any = _types.Array(_types.uint8, 2, "C", readonly=True)  # in a signature: contiguous, perhaps read-only

_I64 = ir.IntType(64)


def place(builder: Any, address: Any, kind: Any) -> Any:
    """Return, while code is generated, ``address`` as a pointer to LLVM type ``kind``."""
    return builder.inttoptr(address, kind.as_pointer())


def load_unaligned(builder: Any, address: Any, kind: Any) -> Any:
    """Return, while code is generated, the value of LLVM type ``kind`` at ``address``, aligned or not."""
    loaded = builder.load(place(builder, address, kind))
    loaded.align = 1
    return loaded


@intrinsic
def load_u8(typing: Any, address: Any) -> Any:
    """Return the byte at ``address``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return load_unaligned(builder, arguments[0], ir.IntType(8))

    return types.uint8(types.int64), generate


@intrinsic
def store_u8(typing: Any, address: Any, value: Any) -> Any:
    """Write a byte to ``address``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], place(builder, arguments[0], ir.IntType(8)))
        return context.get_dummy_value()

    return types.void(types.int64, types.uint8), generate


def pointer_to(kind: Any) -> Any:
    """Return the compiled function ``pointer(address)``, for :func:`numba.carray` of numba type ``kind``."""

    @intrinsic
    def pointer(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return pointer


pointer_i64 = pointer_to(types.int64)
pointer_i32 = pointer_to(types.int32)
pointer_u64 = pointer_to(types.uint64)
pointer_u16 = pointer_to(types.uint16)
pointer_u8 = pointer_to(types.uint8)


def record_type(kind: np.dtype[np.void]) -> Any:
    """Return the numba type of records of ``kind``; compiled code reads and writes their fields as attributes."""
    return numba.from_dtype(kind)


def record_at(kind: np.dtype[np.void]) -> Any:
    """Return the compiled function ``at(address)``: the record of ``kind`` that lies there, not a copy."""

    @intrinsic
    def at(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return record_type(kind)(types.int64), generate

    return at


@intrinsic
def address_of(typing: Any, record: Any) -> Any:
    """Return the address of a record."""
    if not isinstance(record, types.Record):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(arguments[0], _I64)

    return types.int64(record), generate


@numba.njit(nogil=True, error_model="numpy")
def line_from(memory: Any) -> Any:
    """Return the address of the first cache line that begins in an array."""
    return (np.int64(memory.ctypes.data) + LINE - 1) // LINE * LINE


@intrinsic
def copy_bytes(typing: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy ``count`` bytes between regions that do not overlap; assigning slices took ten times as long."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte = ir.IntType(8)
        target, source = (place(builder, address, byte) for address in arguments[:2])
        cgutils.raw_memcpy(builder, target, source, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def popcount(typing: Any, value: Any) -> Any:
    """Return the number of set bits of an unsigned integer, in its own type. Unlike a table, it vectorises."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return value(value), generate


@intrinsic
def trailing_zeros(typing: Any, value: Any) -> Any:
    """Return the position of the lowest set bit of a uint64 that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


def _word(builder: Any, record: Any) -> Any:
    """Return, while code is generated, the pointer to the int64 that a ``memory.WORD`` or ``COUNTER`` begins with."""
    return builder.bitcast(record, _I64.as_pointer())


@intrinsic
def atomic_load(typing: Any, word: Any) -> Any:
    """Return the value of a ``WORD`` or ``COUNTER``, sequentially consistent like the other atomic operations."""
    if not isinstance(word, types.Record):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_word(builder, arguments[0]), "seq_cst", 8)

    return types.int64(word), generate


@intrinsic
def atomic_exchange(typing: Any, word: Any, value: Any) -> Any:
    """Write the value of a ``WORD`` or ``COUNTER`` and return what it was."""
    if not isinstance(word, types.Record):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("xchg", _word(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(word, types.int64), generate


@intrinsic
def atomic_add(typing: Any, word: Any, value: Any) -> Any:
    """Add to the value of a ``WORD`` or ``COUNTER`` and return what it was before."""
    if not isinstance(word, types.Record):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", _word(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(word, types.int64), generate


@intrinsic
def atomic_replace(typing: Any, word: Any, expected: Any, value: Any) -> Any:
    """Write ``value`` if the value of a ``WORD`` or ``COUNTER`` is ``expected``; return whether it was."""
    if not isinstance(word, types.Record):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        outcome = builder.cmpxchg(_word(builder, arguments[0]), arguments[1], arguments[2], "seq_cst", "seq_cst")
        return builder.extract_value(outcome, 1)

    return types.boolean(word, types.int64, types.int64), generate


@intrinsic
def call_entry(typing: Any, function: Any, job: Any, participant: Any) -> Any:
    """Call the ``void(int64 job, int64 participant)`` at address ``function``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I64, _I64])
        builder.call(place(builder, arguments[0], kind), arguments[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def call_kernel(typing: Any, function: Any, first: Any, second: Any, third: Any, fourth: Any) -> Any:
    """Call the ``uint64(int64, int64, int64, int64)`` at address ``function``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_I64, [_I64] * 4)
        return builder.call(place(builder, arguments[0], kind), arguments[1:])

    return types.uint64(*[types.int64] * 5), generate


@intrinsic
def bits_below(typing: Any, address: Any, limit: Any) -> Any:
    """Return a word whose bit i says whether the i-th of 64 uint16 at ``address`` is below ``limit``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.VectorType(ir.IntType(16), 64)
        undefined = ir.Constant(kind, ir.Undefined)
        single = builder.insert_element(undefined, builder.trunc(arguments[1], kind.element), ir.IntType(32)(0))
        limits = builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(ir.IntType(32), 64), [0] * 64))
        return builder.bitcast(builder.icmp_unsigned("<", load_unaligned(builder, arguments[0], kind), limits), _I64)

    return types.uint64(types.int64, types.int64), generate


@intrinsic
def bits_true(typing: Any, address: Any) -> Any:
    """Return a word whose bit i is the i-th of 64 booleans at ``address``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.VectorType(ir.IntType(8), 64)
        flags = load_unaligned(builder, arguments[0], kind)
        return builder.bitcast(builder.icmp_unsigned("!=", flags, ir.Constant(kind, [0] * 64)), _I64)

    return types.uint64(types.int64), generate


def _c_function(name: str, result: Any, *parameters: Any) -> Any:
    """Return the compiled function that calls ``name`` of the C library; parameters and result are int32 or int64."""
    llvm = [ir.IntType(kind.bitwidth) for kind in (result, *parameters)]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(llvm[0], llvm[1:])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)

    if len(parameters) == 3:

        @intrinsic
        def call3(typing: Any, first: Any, second: Any, third: Any) -> Any:
            return result(*parameters), generate

        return call3

    @intrinsic
    def call0(typing: Any) -> Any:
        return result(), generate

    return call0


read_file = _c_function("read", types.int64, types.int32, types.int64, types.int64)
write_file = _c_function("write", types.int64, types.int32, types.int64, types.int64)
yield_cpu = _c_function("sched_yield", types.int32)
