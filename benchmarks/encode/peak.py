"""The measured peak of the cores: the fastest of some large matrix products in ONNX Runtime.

That is not the limit of the hardware, but a large matrix product comes near it, and no convolution is faster.
"""

import time
from typing import Final, Literal

import numpy as np
from onnx import TensorProto, helper

from benchmarks.encode.contenders import open_session
from dmsh_model.integer.layers import Convolution, Linear, Logits
from dmsh_model.integer.network import IntegerNetwork

__all__ = ["Arithmetic", "operations_per_image", "peak_operations_per_second"]

_SHAPES: Final = ((1024, 1024, 1024), (2048, 512, 2304), (3136, 256, 2304))  # (M, N, K): square, and as convolutions
_ROUNDS = 7
Arithmetic = Literal["fp32", "int8"]


def peak_operations_per_second(arithmetic: Arithmetic, threads: int) -> float:
    """Return multiplications and additions per second of the fastest of some products of large matrices."""
    best = 0.0
    random = np.random.default_rng(0)
    for rows, columns, inner in _SHAPES:
        session = open_session(_product(arithmetic, inner, columns), threads, exact=False)
        left = random.integers(0, 256, (rows, inner)).astype(np.uint8 if arithmetic == "int8" else np.float32)
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            session.run(None, {"left": left})
            best = max(best, 2.0 * rows * columns * inner / (time.perf_counter() - start))
    return best


def operations_per_image(network: IntegerNetwork) -> int:
    """Return multiplications and additions per image: two for each weight at each position where it is used."""
    total = 0
    for layer, shape in zip(network.layers, network.shapes, strict=True):
        if isinstance(layer, Convolution | Linear | Logits):
            total += 2 * layer.weight.size * int(np.prod(shape[1:], dtype=np.int64))
    return total


def _product(arithmetic: Arithmetic, inner: int, columns: int) -> bytes:
    """Return a model that multiplies ``left`` by a constant, which ONNX Runtime packs once, as it packs weights."""
    weights = np.random.default_rng(1).integers(-127, 128, (inner, columns))
    int8 = arithmetic == "int8"
    inputs, outputs = (TensorProto.UINT8, TensorProto.INT32) if int8 else (TensorProto.FLOAT, TensorProto.FLOAT)
    constants = [
        helper.make_tensor(
            "right",
            TensorProto.INT8 if int8 else TensorProto.FLOAT,
            weights.shape,
            weights.astype(np.int8 if int8 else np.float32).tobytes(),
            raw=True,
        )
    ]
    if int8:
        constants.append(helper.make_tensor("zero_point", TensorProto.UINT8, [], [128]))
    node = (
        helper.make_node("MatMulInteger", ["left", "right", "zero_point"], ["product"])
        if int8
        else helper.make_node("MatMul", ["left", "right"], ["product"])
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("left", inputs, [None, inner])],
        [helper.make_tensor_value_info("product", outputs, [None, columns])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())
