"""Encoders to compile: exported once a run, quantised where a test wants Q/DQ."""

from functools import cached_property
from pathlib import Path

import onnx
import torch

from dmsh_export.compare.generated import generated_images
from dmsh_export.graph import model_from_file
from dmsh_export.parts import parts_of
from dmsh_export.to_onnx.float import export_onnx
from dmsh_model.config import HashConfig
from dmsh_model.network import DMSH


def random_encoder(path: Path, *, folded=True, **fields) -> DMSH:
    """Export a network with random weights to ``path`` and return it."""
    torch.manual_seed(3)
    model = DMSH(HashConfig(**{"backbone": "vgg_small", "image_size": 32, "bits": 16, **fields})).eval()
    export_onnx(model, path, generated_images(4, model.config.image_size), folded=folded, max_batch=2)
    return model


def quantise(source: Path, out: Path, *, symmetric=True, head=False, fp8=False) -> Path:
    """Write ``source`` as Q/DQ with ONNX Runtime's static quantiser, calibrated on generated images."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    size = onnx.load(source).graph.input[0].type.tensor_type.shape.dim[1].dim_value

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter([{"image": generated_images(4, size, seed=seed)} for seed in range(2)])

        def get_next(self):
            return next(self.batches, None)

    activation = QuantType.QFLOAT8E4M3FN if fp8 else QuantType.QInt8 if symmetric else QuantType.QUInt8
    quantize_static(
        source, out, Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=["Conv", "Gemm"],
        activation_type=activation, weight_type=activation if fp8 else QuantType.QInt8, per_channel=not fp8,
        calibrate_method=CalibrationMethod.Distribution if fp8 else CalibrationMethod.MinMax,
        nodes_to_exclude=[] if head else sorted(parts_of(model_from_file(source).graph).head),
        extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True},
    )  # fmt: skip
    return out


class Encoders:
    """Files of one run's encoders, each made when first asked for."""

    def __init__(self, folder: Path, demo_model: DMSH) -> None:
        self._folder = folder
        self._demo_model = demo_model

    @cached_property
    def demo(self) -> Path:
        out = self._folder / "demo.onnx"
        export_onnx(self._demo_model, out, generated_images(16, 32), max_batch=2)
        return out

    @cached_property
    def resnet50(self) -> Path:
        random_encoder(self._folder / "resnet50.onnx", backbone="resnet50", image_size=224, bits=64)
        return self._folder / "resnet50.onnx"

    @cached_property
    def vgg19(self) -> Path:
        random_encoder(self._folder / "vgg19.onnx", backbone="vgg19", image_size=224, bits=64)
        return self._folder / "vgg19.onnx"

    def named(self, name: str, precision: str) -> Path:
        """Return the encoder ``name``, as Q/DQ where ``precision`` is int8 or fp8."""
        path: Path = getattr(self, name)
        if precision not in ("int8", "fp8"):
            return path
        quantised = self._folder / f"{name}.{precision}.onnx"
        return quantised if quantised.exists() else quantise(path, quantised, fp8=precision == "fp8")
