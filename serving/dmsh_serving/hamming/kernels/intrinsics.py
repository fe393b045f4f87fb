"""What compiled search code is written with: words at an address, bit counts, atomic operations, calls by address.

Imports numba, so it is itself imported on first use.
"""

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils as _cgutils
from numba.core import types as _types
from numba.extending import intrinsic as _numba_intrinsic

carray: Any = numba.carray  # type: ignore[attr-defined]  # (pointer, shape) -> array
cgutils: Any = _cgutils
types: Any = _types

# Typed upstream as the function it decorates, not as what callers see.
intrinsic: Callable[[Callable[..., Any]], Any] = _numba_intrinsic
literal_intrinsic: Callable[[Callable[..., Any]], Any] = _numba_intrinsic(prefer_literal=True)

bytes_read: Any = _types.Array(_types.uint8, 2, "C", readonly=True)  # of a signature: contiguous, perhaps read-only

_I64 = ir.IntType(64)


def place(builder: Any, address: Any, kind: Any) -> Any:
    """Return, while code is generated, ``address`` as a pointer to LLVM type ``kind``."""
    return builder.inttoptr(address, kind.as_pointer())


def load_unaligned(builder: Any, address: Any, kind: Any) -> Any:
    """Return, while code is generated, the ``kind`` that lies at ``address``, however it is aligned."""
    loaded = builder.load(place(builder, address, kind))
    loaded.align = 1
    return loaded


def _loader(kind: Any) -> Any:
    """Make ``load(address)``: the little-endian ``kind`` that lies there."""

    @intrinsic
    def load(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return load_unaligned(builder, arguments[0], ir.IntType(kind.bitwidth))

        return kind(types.int64), generate

    return load


def _storer(kind: Any) -> Any:
    """Make ``store(address, value)``."""

    @intrinsic
    def store(typing: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            builder.store(arguments[1], place(builder, arguments[0], ir.IntType(kind.bitwidth))).align = 1
            return context.get_dummy_value()

        return types.void(types.int64, kind), generate

    return store


load_u8 = _loader(types.uint8)
load_i64 = _loader(types.int64)
store_u8 = _storer(types.uint8)
store_i64 = _storer(types.int64)


def _pointer(kind: Any) -> Any:
    """Make ``pointer(address)``, for :func:`numba.carray`."""

    @intrinsic
    def pointer(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return pointer


pointer_i64 = _pointer(types.int64)
pointer_i32 = _pointer(types.int32)
pointer_u64 = _pointer(types.uint64)
pointer_u16 = _pointer(types.uint16)
pointer_u8 = _pointer(types.uint8)


@intrinsic
def copy_bytes(typing: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy ``count`` bytes between addresses that do not overlap; an assignment of slices took ten times as long."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte = ir.IntType(8)
        target, source = (place(builder, address, byte) for address in arguments[:2])
        cgutils.raw_memcpy(builder, target, source, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def popcount(typing: Any, value: Any) -> Any:
    """Return the number of set bits of an unsigned integer, in its own type (vectorises, unlike a table)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return value(value), generate


@intrinsic
def trailing_zeros(typing: Any, value: Any) -> Any:
    """Return the position of the lowest set bit of a uint64 that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@intrinsic
def atomic_load(typing: Any, address: Any) -> Any:
    """Return the int64 at an aligned address, in sequence with every other atomic operation."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(place(builder, arguments[0], _I64), "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def atomic_exchange(typing: Any, address: Any, value: Any) -> Any:
    """Write an int64 and return what was there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("xchg", place(builder, arguments[0], _I64), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def atomic_add(typing: Any, address: Any, value: Any) -> Any:
    """Add to an int64 and return what was there before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", place(builder, arguments[0], _I64), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def atomic_replace(typing: Any, address: Any, expected: Any, value: Any) -> Any:
    """Write ``value`` if the int64 there is ``expected``; return whether it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target = place(builder, arguments[0], _I64)
        outcome = builder.cmpxchg(target, arguments[1], arguments[2], "seq_cst", "seq_cst")
        return builder.extract_value(outcome, 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


@intrinsic
def call_entry(typing: Any, function: Any, job: Any, participant: Any) -> Any:
    """Call the ``void(int64 job, int64 participant)`` at address ``function``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I64, _I64])
        builder.call(place(builder, arguments[0], kind), arguments[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def call_kernel(typing: Any, function: Any, codes: Any, groups: Any, query: Any, last: Any) -> Any:
    """Call one of the functions of a :class:`dmsh_serving.hamming.kernels.vectors.Kernel` by its address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_I64, [_I64] * 4)
        return builder.call(place(builder, arguments[0], kind), arguments[1:])

    return types.uint64(*[types.int64] * 5), generate


@intrinsic
def bits_below(typing: Any, address: Any, limit: Any) -> Any:
    """Return a word whose bit i is set where the i-th of 64 uint16 at ``address`` is below ``limit``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.VectorType(ir.IntType(16), 64)
        undefined = ir.Constant(kind, ir.Undefined)
        single = builder.insert_element(undefined, builder.trunc(arguments[1], kind.element), ir.IntType(32)(0))
        limits = builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(ir.IntType(32), 64), [0] * 64))
        return builder.bitcast(builder.icmp_unsigned("<", load_unaligned(builder, arguments[0], kind), limits), _I64)

    return types.uint64(types.int64, types.int64), generate


@intrinsic
def bits_true(typing: Any, address: Any) -> Any:
    """Return a word whose bit i is set where the i-th of 64 booleans at ``address`` is true."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.VectorType(ir.IntType(8), 64)
        flags = load_unaligned(builder, arguments[0], kind)
        return builder.bitcast(builder.icmp_unsigned("!=", flags, ir.Constant(kind, [0] * 64)), _I64)

    return types.uint64(types.int64), generate


def _c_function(name: str, result: Any, *parameters: Any) -> Any:
    """Make a call of the C library's ``name``; parameters and result are int32 or int64."""
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
