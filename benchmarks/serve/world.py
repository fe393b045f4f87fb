"""What is served and measured: a network over a gallery, and the same repository with models that do nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.common.networks import network, real_images
from dmsh_export.to_onnx.float import export_onnx
from dmsh_serving import gallery
from dmsh_serving.codes import uniform_codes
from dmsh_serving.contract import ENCODER_MODEL, RANKER_MODEL
from dmsh_serving.encoder.onnxruntime import OnnxEncoder
from dmsh_serving.triton.repository import write_repository
from dmsh_serving.triton.spec import PythonBackend, RepositorySpec

Images = npt.NDArray[np.uint8]

MAX_BATCH: Final = 32
_PROVEN_IMAGES: Final = 8

# Answers every request at once, with arrays of the shapes and types that the configuration names, and no content.
_IDLE_MODEL: Final = """
import json

import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        outputs = json.loads(args["model_config"])["output"]
        self.outputs = [
            (each["name"], [max(1, int(size)) for size in each["dims"]], pb.triton_string_to_numpy(each["data_type"]))
            for each in outputs
        ]

    def execute(self, requests):
        return [self.response(request.inputs()[0].shape()[0]) for request in requests]

    def response(self, rows):
        return pb.InferenceResponse(
            [
                pb.Tensor(name, np.full((rows, *sizes), "" if kind == np.object_ else 0, kind))
                for name, sizes, kind in self.outputs
            ]
        )
"""


@dataclass(frozen=True)
class World:
    """One network, ready to be served.

    Attributes:
        model: the ONNX file.
        gallery: a gallery of uniform codes.
        fingerprint, bits: the code space of both.
        spec: what the repository was written from.
        repository: serves them.
        idle: the same repository, but encoder and ranker do nothing: what is left is Triton and its network.
        images: (N, S, S, 3) uint8 to ask with.
    """

    model: Path
    gallery: Path
    fingerprint: str
    bits: int
    spec: RepositorySpec
    repository: Path
    idle: Path
    images: Images


def make_world(name: str, folder: Path, codes: int, threads: int) -> World:
    """Export the float network ``name`` of :data:`encode_networks.NETWORKS` and put it over ``codes`` codes."""
    images = real_images(name, 64)
    model = network(name, images[:32])
    path = folder / "model.onnx"
    export_onnx(model, path, images[:_PROVEN_IMAGES], max_batch=1)
    with OnnxEncoder(path) as encoder:
        bits, fingerprint = encoder.bits, encoder.fingerprint
    keys = [f"image-{number}" for number in range(codes)]
    gallery.build(
        folder / "gallery", uniform_codes(codes, bits, seed=0), None, keys, bits=bits, fingerprint=fingerprint
    )
    spec = RepositorySpec(
        gallery=folder / "gallery",
        bits=bits,
        image_size=model.config.image_size,
        fingerprint=fingerprint,
        model=path,
        framing=model.config.framing,
        encoder=PythonBackend(threads),
        max_batch=MAX_BATCH,
    )
    repository, idle = folder / "model_repository", folder / "idle_repository"
    for each in (repository, idle):
        write_repository(each, spec)
    for served in (ENCODER_MODEL, RANKER_MODEL):
        (idle / served / "1" / "model.py").write_text(_IDLE_MODEL)
    return World(path, folder / "gallery", fingerprint, bits, spec, repository, idle, images)
