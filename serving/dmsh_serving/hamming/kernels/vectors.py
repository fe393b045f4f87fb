"""The vector part of Hamming search: which groups hold a code below the cut, and the distances of a group.

Codes are compared in groups of 64, in one of two arrangements. In *rows* they lie as the gallery holds them. Each code
takes a *slot* of a vector: its width rounded up to a power of two. If the width is not a power of two, a byte shuffle
moves the code to its slot. In *columns* (for codes of more than 8 bytes) the first words of 8 codes come first, then
their second words, and so on. Few queries read rows, in place. Many queries read columns, which are arranged once per
block for all of them: they need no shuffle, and a distance is a sum over whole vectors.

The fast path writes no distances. It reduces 64 codes to one vector of lane minima and compares that with the cut (the
k-th distance so far): one exclusive or, one population count and one minimum per vector of 64 bytes (AVX-512 VPOPCNTDQ;
AVX2 counts bits by table look-up). This module writes LLVM vectors, not loops, because LLVM's auto-vectoriser does not
find these instructions for slots of more than 8 bytes or for the minima. The vectors have 64 bytes; LLVM splits them if
the CPU's are narrower.
"""

import functools
from dataclasses import asdict, dataclass
from typing import Any, Final

from llvmlite import ir  # type: ignore[import-untyped]

from dmsh_serving.hamming.kernels.arrange import (
    columns_for,
    copy_for,
    lane_mask,
    slot_of,
    slot_vector,
    spread_for,
    words_of,
)
from dmsh_serving.hamming.kernels.blocks import BLOCK_KERNEL, GROUP
from dmsh_serving.hamming.kernels.compile import entry
from dmsh_serving.hamming.kernels.intrinsics import (
    cgutils,
    literal_intrinsic,
    load_unaligned,
    place,
    types,
)
from dmsh_serving.hamming.kernels.memory import new_record

__all__ = ["BlockKernel", "Kernel", "kernel_for"]

VECTOR_BYTES: Final = 64
MAX_BLOCK: Final = 64 * GROUP  # codes: a word has one bit per group
_BLOCK_BYTES: Final = 32_768  # so that a block stays in the first-level cache
_WORTH_COLUMNS: Final = 8  # queries: for so many, arranging a block costs less than it saves

_I16, _I64 = ir.IntType(16), ir.IntType(64)


@dataclass(frozen=True)
class BlockKernel:
    """The compiled functions that read a block of codes in one arrangement, called by address.

    Attributes:
        hit_groups: address of ``uint64(int64 codes, int64 groups, int64 query, int64 cut)``. Bit g of the result says
            whether one of the 64 codes of group g is below ``cut``. At most 64 groups.
        near: address of ``uint64(int64 codes, int64 cut, int64 query, int64 out)``. It writes the distances of one
            group as uint16; bit i of the result says whether code i is below ``cut``.
        arrange: address of ``uint64(int64 codes, int64 left, int64 count, int64 out)``. It writes ``count`` of the
            ``left`` codes at ``codes`` in this arrangement, reads nothing beyond the ``left`` codes, and returns 0.
        in_place: whether a block can be read where the gallery holds it, if :data:`GROUP` more codes follow it.
        code_bytes: bytes per code in this arrangement.
    """

    hit_groups: int
    near: int
    arrange: int
    in_place: bool
    code_bytes: int


@dataclass(frozen=True)
class Kernel:
    """The compiled functions for codes of one width. Each is compiled when it is first needed.

    Attributes:
        width: bytes per code.
    """

    width: int

    @property
    def slot(self) -> int:
        """Bytes that a code takes in a vector; queries are padded to this size with zeros."""
        return slot_of(self.width)

    @property
    def block(self) -> int:
        """Codes per block, a multiple of :data:`GROUP`."""
        return min(MAX_BLOCK, _BLOCK_BYTES // self.slot)

    @functools.cached_property
    def rows(self) -> BlockKernel:
        """The functions for few queries: they read codes as the gallery holds them."""
        return _block_kernel(self.width, False, copy_for(self.width), self.width)

    @functools.cached_property
    def many(self) -> BlockKernel:
        """The functions for many queries: they read columns, or slots for codes of up to 8 bytes."""
        if self.slot > 8:
            return _block_kernel(self.width, True, columns_for(self.width), 8 * words_of(self.width), in_place=False)
        if self.width < self.slot:
            return _block_kernel(self.slot, False, spread_for(self.width), self.slot, in_place=False)
        return self.rows

    @functools.cached_property
    def distances(self) -> int:
        """Address of ``uint64(int64 codes, int64 groups, int64 query, int64 out)``, for benchmarks.

        The codes lie in slots. It writes the distances of whole groups as uint16, in order, and returns 0.
        """
        return _compiled_distances(self.slot).address  # type: ignore[no-any-return]

    def record_for(self, queries: int) -> int:
        """Return the address of the ``blocks.BLOCK_KERNEL`` for this number of queries; it is never freed."""
        return self._row_record if queries < _WORTH_COLUMNS else self._many_record

    @functools.cached_property
    def _row_record(self) -> int:
        return self._record(self.rows)

    @functools.cached_property
    def _many_record(self) -> int:
        return self._record(self.many)

    def _record(self, kernel: BlockKernel) -> int:
        record = new_record(
            BLOCK_KERNEL,
            **asdict(kernel),
            row_near=self.rows.near,
            slot=self.slot,
            block=self.block,
        )
        _records.append(record)
        return record.ctypes.data


_records: list[Any] = []  # kept for ever: callers know a record by its address alone
kernel_for = functools.cache(Kernel)


def _block_kernel(width: int, columns: bool, arrange: int, code_bytes: int, *, in_place: bool = True) -> BlockKernel:
    hit_groups, near = _compiled_block(width, columns)
    return BlockKernel(hit_groups.address, near.address, arrange, in_place, code_bytes)


@functools.cache
def _compiled_block(width: int, columns: bool) -> tuple[Any, Any]:
    @entry("uint64(int64, int64, int64, int64)")
    def hit_groups(codes: int, groups: int, query: int, cut: int) -> Any:
        return _hit_groups(width, columns, codes, groups, query, cut)

    @entry("uint64(int64, int64, int64, int64)")
    def near(codes: int, cut: int, query: int, out: int) -> Any:
        return _near(width, columns, codes, cut, query, out)

    return hit_groups, near


@functools.cache
def _compiled_distances(slot: int) -> Any:
    @entry("uint64(int64, int64, int64, int64)")
    def distances(codes: int, groups: int, query: int, out: int) -> Any:
        return _distances(slot, codes, groups, query, out)

    return distances


class _Tile:
    """Generates the code that turns the vectors of some codes into one vector of their distances."""

    def __init__(self, builder: Any, width: int, columns: bool, query: Any) -> None:
        self.slot = slot_of(width)
        lane_bytes = min(self.slot, 8)
        self.builder = builder
        self.width, self.columns = width, columns
        self.lane = ir.IntType(8 * lane_bytes)
        self.lanes = VECTOR_BYTES // lane_bytes  # also the codes of a tile
        self.vector = ir.VectorType(self.lane, self.lanes)
        self.words = words_of(width) if columns else self.slot // lane_bytes  # vectors per tile
        self.bytes = VECTOR_BYTES * self.words if columns else self.lanes * width
        self.query = [self._query_vector(query, i) for i in range(self._query_vectors())]

    def _query_vectors(self) -> int:
        return self.words if self.columns else max(1, self.words // self.lanes)

    def _query_vector(self, query: Any, index: int) -> Any:
        vector = ir.Constant(self.vector, ir.Undefined)
        for lane in range(self.lanes):
            word = index if self.columns else (index * self.lanes + lane) % self.words
            at = self.builder.add(query, _I64(word * (self.lane.width // 8)))
            loaded = load_unaligned(self.builder, at, self.lane)
            vector = self.builder.insert_element(vector, loaded, ir.IntType(32)(lane))
        return vector

    def _codes(self, codes: Any, index: int) -> Any:
        """Return vector ``index`` of the tile at ``codes``."""
        if self.columns:
            return load_unaligned(self.builder, self.builder.add(codes, _I64(index * VECTOR_BYTES)), self.vector)
        return self.builder.bitcast(slot_vector(self.builder, codes, self.width, self.slot, index), self.vector)

    def splat(self, value: Any) -> Any:
        undefined = ir.Constant(self.vector, ir.Undefined)
        single = self.builder.insert_element(undefined, value, ir.IntType(32)(0))
        return self.builder.shuffle_vector(single, undefined, lane_mask([0] * self.lanes))

    def count_bits(self, vector: Any) -> Any:
        return self._call("ctpop", self.vector, vector)

    def minimum(self, left: Any, right: Any) -> Any:
        # AVX2 has no minimum of 64-bit lanes. The upper halves of distances are 0, so one of 32-bit lanes will do.
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
        """Return the distances of the tile at ``codes``, one per lane; it is cheaper if their order does not matter."""
        counts = []
        for index in range(self.words):
            query = self.query[index % len(self.query)]
            counts.append(self.count_bits(self.builder.xor(self._codes(codes, index), query)))
        if self.columns:
            return functools.reduce(self.builder.add, counts)
        while len(counts) > self.lanes:  # vectors that hold parts of the same codes
            counts = [self.builder.add(a, b) for a, b in zip(counts[::2], counts[1::2], strict=True)]
        run = 1
        while len(counts) > 1:
            low, high = map(lane_mask, _even_odd(self.lanes) if in_order else _interleaved(self.lanes, run))
            counts = [
                self.builder.add(self.builder.shuffle_vector(a, b, low), self.builder.shuffle_vector(a, b, high))
                for a, b in zip(counts[::2], counts[1::2], strict=True)
            ]
            run *= 2
        return counts[0]


def _even_odd(lanes: int) -> tuple[list[int], list[int]]:
    """Return the lanes of two vectors to add: the sums of neighbours, in order."""
    return list(range(0, 2 * lanes, 2)), list(range(1, 2 * lanes, 2))


def _interleaved(lanes: int, run: int) -> tuple[list[int], list[int]]:
    """Return the lanes of two vectors to add, in runs of ``run`` lanes: cheaper than keeping the order."""
    starts = range(0, lanes, 2 * run)
    both = [[s + i + v * lanes for s in starts for v in (0, 1) for i in range(o, o + run)] for o in (0, run)]
    return both[0], both[1]


@literal_intrinsic
def _hit_groups(typing: Any, width: Any, columns: Any, codes: Any, groups: Any, query: Any, cut: Any) -> Any:
    if not isinstance(width, types.IntegerLiteral):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, codes, groups, query, cut = arguments
        tile = _Tile(builder, width.literal_value, columns.literal_value, query)
        limit = tile.splat(builder.trunc(cut, tile.lane) if tile.lane.width < 64 else cut)
        hits = cgutils.alloca_once_value(builder, _I64(0))
        with cgutils.for_range(builder, groups, intp=_I64) as loop:
            at = builder.add(codes, builder.mul(loop.index, _I64(GROUP // tile.lanes * tile.bytes)))
            lowest = None
            for index in range(GROUP // tile.lanes):
                found = tile.distances(builder.add(at, _I64(index * tile.bytes)), in_order=False)
                lowest = found if lowest is None else tile.minimum(lowest, found)
            below = builder.bitcast(builder.icmp_unsigned("<", lowest, limit), ir.IntType(tile.lanes))
            hit = builder.icmp_unsigned("!=", below, below.type(0))
            bit = builder.shl(builder.zext(hit, _I64), loop.index)
            builder.store(builder.or_(builder.load(hits), bit), hits)
        return builder.load(hits)

    return types.uint64(width, columns, *[types.int64] * 4), generate


@literal_intrinsic
def _distances(typing: Any, slot: Any, codes: Any, groups: Any, query: Any, out: Any) -> Any:
    if not isinstance(slot, types.IntegerLiteral):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, codes, groups, query, out = arguments
        tile = _Tile(builder, slot.literal_value, False, query)
        with cgutils.for_range(builder, builder.mul(groups, _I64(GROUP // tile.lanes)), intp=_I64) as loop:
            found = tile.distances(builder.add(codes, builder.mul(loop.index, _I64(tile.bytes))), in_order=True)
            tile.store(found, builder.add(out, builder.mul(loop.index, _I64(2 * tile.lanes))))
        return _I64(0)

    return types.uint64(slot, types.int64, types.int64, types.int64, types.int64), generate


@literal_intrinsic
def _near(typing: Any, width: Any, columns: Any, codes: Any, cut: Any, query: Any, out: Any) -> Any:
    if not isinstance(width, types.IntegerLiteral):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, codes, cut, query, out = arguments
        tile = _Tile(builder, width.literal_value, columns.literal_value, query)
        limit = tile.splat(builder.trunc(cut, tile.lane) if tile.lane.width < 64 else cut)
        near: Any = _I64(0)
        for index in range(GROUP // tile.lanes):
            found = tile.distances(builder.add(codes, _I64(index * tile.bytes)), in_order=True)
            tile.store(found, builder.add(out, _I64(2 * index * tile.lanes)))
            below = builder.bitcast(builder.icmp_unsigned("<", found, limit), ir.IntType(tile.lanes))
            below = builder.zext(below, _I64) if tile.lanes < GROUP else below
            near = builder.or_(near, builder.shl(below, _I64(index * tile.lanes)))
        return near

    return types.uint64(width, columns, *[types.int64] * 4), generate
