"""The vector part of Hamming search: which groups of codes have one below a cut, and their distances.

Codes lie in *slots* of 1, 2, 4, 8, 16, 32, 64 or 128 bytes; other widths are spread into the next slot, with
zero bytes after the code, a block at a time. One pair of functions is compiled for each slot size, on first use.

The fast path computes no list of distances at all: 64 codes are reduced to one vector of lane minima, which is
compared with the running k-th distance ("the cut"). That is one exclusive or, one population count and one
minimum a vector of 64 bytes (AVX-512 VPOPCNTDQ; AVX2 counts bits by table look-up). LLVM vectors are written out
here, rather than loops left to the auto-vectoriser, because for slots beyond 8 bytes and for the reductions it
does not find these instructions. Written for 64-byte vectors; LLVM splits them where the CPU's are narrower.
"""

import functools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]

from dmsh_serving.hamming_spread import spread_for
from dmsh_serving.native import carray, cgutils, entry, literal_intrinsic, load_unaligned, place, pointer_u8, types

GROUP: Final = 64  # codes a look at the cut
VECTOR_BYTES: Final = 64
MAX_BLOCK: Final = 64 * GROUP  # one bit a group in a word
_BLOCK_BYTES: Final = 32_768  # stays in the first-level cache

_I16, _I64 = ir.IntType(16), ir.IntType(64)


@dataclass(frozen=True)
class Kernel:
    """The compiled functions for one slot size, called by address.

    Attributes:
        slot: bytes a code occupies.
        block: codes a call of ``hit_groups``, a multiple of :data:`GROUP`.
        hit_groups: address of ``uint64(int64 codes, int64 groups, int64 query, int64 cut)``: bit g is set where
            one of the 64 codes of group g, of at most 64, is nearer than ``cut`` to the query.
        near: address of ``uint64(int64 codes, int64 cut, int64 query, int64 out)``: writes the distances of one group
            as uint16 and returns which of them are below ``cut``, a bit each.
        distances: address of ``uint64(int64 codes, int64 groups, int64 query, int64 out)``: writes the distances of
            the groups as uint16, in order, and returns 0.
        spread: address of the function that brings codes into slots: see :mod:`dmsh_serving.hamming_spread`.
        mask_block: address of ``uint64(int64 allowed, int64 count, int64 groups, int64 out)``: copies ``count``
            booleans (true ones where ``allowed`` is 0) into whole groups, false beyond them, and returns 0 where
            none is true.
    """

    slot: int
    block: int
    hit_groups: int
    near: int
    distances: int
    spread: int
    mask_block: int

    @functools.cached_property
    def words(self) -> npt.NDArray[np.int64]:
        """(7,) int64, as jobs hold them: hit_groups, near, distances, spread, mask_block, slot, block."""
        words = (self.hit_groups, self.near, self.distances, self.spread, self.mask_block, self.slot, self.block)
        return np.array(words, np.int64)


def slot_of(width: int) -> int:
    """Return the slot size for codes of ``width`` bytes: the next power of two."""
    return 1 << (width - 1).bit_length()


@functools.cache
def kernel_for(width: int) -> Kernel:
    """Return the compiled functions for codes of ``width`` bytes."""
    slot = slot_of(width)
    hit_groups, near, distances = _compile(slot)
    return Kernel(
        slot,
        min(MAX_BLOCK, _BLOCK_BYTES // slot),
        hit_groups.address,
        near.address,
        distances.address,
        spread_for(width, slot),
        _mask_block.address,
    )


@functools.cache
def _compile(slot: int) -> tuple[Any, Any, Any]:
    @entry("uint64(int64, int64, int64, int64)")
    def hit_groups(codes: int, groups: int, query: int, cut: int) -> Any:
        return _hit_groups(slot, codes, groups, query, cut)

    @entry("uint64(int64, int64, int64, int64)")
    def distances(codes: int, groups: int, query: int, out: int) -> Any:
        return _distances(slot, codes, groups, query, out)

    @entry("uint64(int64, int64, int64, int64)")
    def near(codes: int, cut: int, query: int, out: int) -> Any:
        return _near(slot, codes, cut, query, out)

    return hit_groups, near, distances


@entry("uint64(int64, int64, int64, int64)")
def _mask_block(allowed: int, count: int, groups: int, out: int) -> Any:
    target = carray(pointer_u8(out), groups * GROUP)
    target[count:] = 0
    if allowed == 0:
        target[:count] = 1
        return 1
    source = carray(pointer_u8(allowed), count)
    some = np.uint8(0)
    for i in range(count):
        target[i] = source[i]
        some |= source[i]
    return some


class _Tile:
    """Generates the code that turns the codes of some vectors into one vector of their distances."""

    def __init__(self, builder: Any, slot: int, query: Any) -> None:
        lane_bytes = min(slot, 8)
        self.builder = builder
        self.lane = ir.IntType(8 * lane_bytes)
        self.lanes = VECTOR_BYTES // lane_bytes
        self.vector = ir.VectorType(self.lane, self.lanes)
        self.words = slot // lane_bytes  # lanes a code
        self.bytes = VECTOR_BYTES * self.words  # a tile; it holds as many codes as a vector has lanes
        self.query = [self._query_vector(query, i) for i in range(max(1, self.words // self.lanes))]

    def _query_vector(self, query: Any, index: int) -> Any:
        vector = ir.Constant(self.vector, ir.Undefined)
        for lane in range(self.lanes):
            offset = (index * self.lanes + lane) % self.words * (self.lane.width // 8)
            word = load_unaligned(self.builder, self.builder.add(query, _I64(offset)), self.lane)
            vector = self.builder.insert_element(vector, word, ir.IntType(32)(lane))
        return vector

    def constant(self, value: int) -> Any:
        return ir.Constant(self.vector, [value] * self.lanes)

    def splat(self, value: Any) -> Any:
        undefined = ir.Constant(self.vector, ir.Undefined)
        single = self.builder.insert_element(undefined, value, ir.IntType(32)(0))
        return self.builder.shuffle_vector(single, undefined, _mask([0] * self.lanes))

    def count_bits(self, vector: Any) -> Any:
        return self._call("ctpop", self.vector, vector)

    def minimum(self, left: Any, right: Any) -> Any:
        # AVX2 has no minimum of 64-bit lanes. The upper halves of distances are 0, so that of 32-bit lanes will do.
        kind = ir.VectorType(ir.IntType(32), 16) if self.lane.width == 64 else self.vector
        cast = self.builder.bitcast
        return cast(self._call("umin", kind, cast(left, kind), cast(right, kind)), self.vector)

    def store(self, distances: Any, at: Any) -> None:
        """Write the distances of a tile as uint16 to address ``at``."""
        narrow = ir.VectorType(_I16, self.lanes)
        if self.lane.width != 16:
            convert = self.builder.zext if self.lane.width < 16 else self.builder.trunc
            distances = convert(distances, narrow)
        self.builder.store(distances, place(self.builder, at, narrow)).align = 2

    def _call(self, name: str, kind: Any, *arguments: Any) -> Any:
        function_type = ir.FunctionType(kind, [kind] * len(arguments))
        full_name = f"llvm.{name}.v{kind.count}i{kind.element.width}"
        function = cgutils.get_or_insert_function(self.builder.module, function_type, full_name)
        return self.builder.call(function, arguments)

    def distances(self, codes: Any, *, in_order: bool) -> Any:
        """Return the distances of the tile at ``codes``, one a lane; cheaper when their order does not matter."""
        counts = []
        for index in range(self.words):
            vector = load_unaligned(self.builder, self.builder.add(codes, _I64(index * VECTOR_BYTES)), self.vector)
            query = self.query[index % len(self.query)]
            counts.append(self.count_bits(self.builder.xor(vector, query)))
        while len(counts) > self.lanes:  # vectors that hold parts of the same codes
            counts = [self.builder.add(a, b) for a, b in zip(counts[::2], counts[1::2], strict=True)]
        run = 1
        while len(counts) > 1:
            low, high = (_even_odd(self.lanes),) * 2 if in_order else (_interleaved(self.lanes, run),) * 2
            counts = [
                self.builder.add(
                    self.builder.shuffle_vector(a, b, _mask(low[0])), self.builder.shuffle_vector(a, b, _mask(high[1]))
                )
                for a, b in zip(counts[::2], counts[1::2], strict=True)
            ]
            run *= 2
        return counts[0]


def _mask(lanes: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)


def _even_odd(lanes: int) -> tuple[list[int], list[int]]:
    """Return the lanes of two vectors whose sums keep pairs of neighbours in order."""
    return list(range(0, 2 * lanes, 2)), list(range(1, 2 * lanes, 2))


def _interleaved(lanes: int, run: int) -> tuple[list[int], list[int]]:
    """Return the lanes that unpacking two vectors in runs of ``run`` lanes takes: cheaper than keeping order."""
    starts = range(0, lanes, 2 * run)
    both = [[s + i + v * lanes for s in starts for v in (0, 1) for i in range(o, o + run)] for o in (0, run)]
    return both[0], both[1]


@literal_intrinsic
def _hit_groups(typing: Any, slot: Any, codes: Any, groups: Any, query: Any, cut: Any) -> Any:
    if not isinstance(slot, types.IntegerLiteral):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, codes, groups, query, cut = arguments
        tile = _Tile(builder, slot.literal_value, query)
        limit = tile.splat(builder.trunc(cut, tile.lane) if tile.lane.width < 64 else cut)
        hits = cgutils.alloca_once_value(builder, _I64(0))
        with cgutils.for_range(builder, groups, intp=_I64) as loop:
            at = builder.add(codes, builder.mul(loop.index, _I64(GROUP * slot.literal_value)))
            lowest = None
            for index in range(GROUP // tile.lanes):
                found = tile.distances(builder.add(at, _I64(index * tile.bytes)), in_order=False)
                lowest = found if lowest is None else tile.minimum(lowest, found)
            below = builder.bitcast(builder.icmp_unsigned("<", lowest, limit), ir.IntType(tile.lanes))
            hit = builder.icmp_unsigned("!=", below, below.type(0))
            bit = builder.shl(builder.zext(hit, _I64), loop.index)
            builder.store(builder.or_(builder.load(hits), bit), hits)
        return builder.load(hits)

    return types.uint64(slot, types.int64, types.int64, types.int64, types.int64), generate


@literal_intrinsic
def _distances(typing: Any, slot: Any, codes: Any, groups: Any, query: Any, out: Any) -> Any:
    if not isinstance(slot, types.IntegerLiteral):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, codes, groups, query, out = arguments
        tile = _Tile(builder, slot.literal_value, query)
        with cgutils.for_range(builder, builder.mul(groups, _I64(GROUP // tile.lanes)), intp=_I64) as loop:
            found = tile.distances(builder.add(codes, builder.mul(loop.index, _I64(tile.bytes))), in_order=True)
            tile.store(found, builder.add(out, builder.mul(loop.index, _I64(2 * tile.lanes))))
        return _I64(0)

    return types.uint64(slot, types.int64, types.int64, types.int64, types.int64), generate


@literal_intrinsic
def _near(typing: Any, slot: Any, codes: Any, cut: Any, query: Any, out: Any) -> Any:
    if not isinstance(slot, types.IntegerLiteral):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, codes, cut, query, out = arguments
        tile = _Tile(builder, slot.literal_value, query)
        limit = tile.splat(builder.trunc(cut, tile.lane) if tile.lane.width < 64 else cut)
        near: Any = _I64(0)
        for index in range(GROUP // tile.lanes):
            found = tile.distances(builder.add(codes, _I64(index * tile.bytes)), in_order=True)
            tile.store(found, builder.add(out, _I64(2 * index * tile.lanes)))
            below = builder.bitcast(builder.icmp_unsigned("<", found, limit), ir.IntType(tile.lanes))
            below = builder.zext(below, _I64) if tile.lanes < GROUP else below
            near = builder.or_(near, builder.shl(below, _I64(index * tile.lanes)))
        return near

    return types.uint64(slot, types.int64, types.int64, types.int64, types.int64), generate
