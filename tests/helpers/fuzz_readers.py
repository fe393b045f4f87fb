"""Everything that reads bytes from outside, each as a function of the bytes, with sound inputs to begin from."""

import functools
import io
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import integer_networks
import numpy as np
import onnx
import tiny_model
from google.protobuf import message
from PIL import Image
from tritonclient.grpc import InferResult, service_pb2

from dmsh_export.graph import model_from_file
from dmsh_export.lint.ensembles import check_ensemble
from dmsh_export.lint.models import check_alone, read_models
from dmsh_export.prove.certificate import certify
from dmsh_export.to_onnx.dialects import onnx_from_network
from dmsh_model import checkpoint
from dmsh_model.fingerprint import integer_fingerprint
from dmsh_model.integer import checkpoint as integer_checkpoint
from dmsh_model.integer.network import canonical_hash
from dmsh_serving import gallery
from dmsh_serving.client.answers import arrays_of, strings_of
from dmsh_serving.contract import CODE, DISTANCES, GALLERY_VERSION, IDS, KEYS, Metadata
from dmsh_serving.encoder import known_answer
from dmsh_serving.errors import InputError
from dmsh_serving.gallery.header import read_base, read_next_id
from dmsh_serving.gallery.part_file import read_part
from dmsh_serving.images.decode import image_from_bytes
from dmsh_serving.images.framing import Framing
from dmsh_serving.images.read import load_npy
from dmsh_serving.triton.repository import write_repository
from dmsh_serving.triton.spec import RepositorySpec


@dataclass(frozen=True)
class Reader:
    """``read(data)`` returns, or raises an error of ours; ``seeds()`` are inputs that it reads."""

    name: str
    read: object
    seeds: object


@functools.cache
def place():
    """A folder for the files of this process, in memory where that is there; gone with the process."""
    memory = Path("/dev/shm")
    held = tempfile.TemporaryDirectory(prefix="dmsh-fuzz-", dir=memory if memory.is_dir() else None)
    place.held = held  # until the process ends
    return Path(held.name)


def written(name, data):
    path = place() / name
    path.write_bytes(data)
    return path


def images():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8))
    ways = [
        (noise, "JPEG", {}), (noise, "JPEG", {"progressive": True}), (noise.convert("CMYK"), "JPEG", {}),
        (noise, "PNG", {}), (noise.convert("P"), "PNG", {}), (noise.convert("RGBA"), "PNG", {}),
        (noise.convert("I;16"), "PNG", {}), (noise, "WEBP", {}), (noise, "WEBP", {"lossless": True}),
        (noise, "BMP", {}), (noise.convert("P"), "GIF", {}), (noise, "TIFF", {}),
        (noise, "TIFF", {"compression": "tiff_lzw"}), (noise, "TIFF", {"compression": "jpeg"}),
        (noise.convert("1"), "TIFF", {"compression": "group4"}), (noise, "AVIF", {}),
    ]  # fmt: skip
    for image, kind, options in ways:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        yield buffer.getvalue()


_SAID = re.compile(rb'"sha256": *"([0-9a-f]{8})')


def read_gallery(data):
    """Under the name that its content should have, so that more than the name is looked at."""
    said = _SAID.search(data)
    path = written(f"gallery-99999999-{said.group(1).decode() if said else '0' * 8}.safetensors", data)
    try:
        read_gallery_file(path)
    finally:
        path.unlink()


def read_gallery_file(path):
    read_base(path)
    read_next_id(path)
    read_part(path)


def galleries():
    codes = tiny_model.codes_of(tiny_model.random_images(9))
    folder = place() / "gallery"
    for keys in (None, [f"é{number}" for number in range(9)]):
        for clustered in (codes, np.repeat(codes, 400, 0)):
            count = len(clustered)
            own = None if keys is None else [f"{number}" for number in range(count)]
            made = gallery.build(folder, clustered, None, own, bits=64, fingerprint="f" * 64, overwrite=True)
            if made.path.stat().st_size < 60_000:
                yield made.path.read_bytes()
    yield gallery.append(folder, codes[:2], None, ["a", "b"]).path.read_bytes()


def read_state(data):
    checkpoint.read_torch_file(written("state.pt", data))


def states():
    import torch

    buffer = io.BytesIO()
    torch.save({"a.weight": torch.ones(2, 3), "b": torch.zeros(1, dtype=torch.int8)}, buffer)
    yield buffer.getvalue()
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=False)
    yield buffer.getvalue()


@functools.cache
def integer_folder():
    folder = place() / "checkpoint"
    integer_checkpoint.save(integer_networks.model(), folder, parent="p" * 64)
    return folder


def read_config(data):
    folder = integer_folder()
    (folder / checkpoint.CONFIG_FILE).write_bytes(data)
    integer_checkpoint.load(folder)


def configs():
    folder = integer_folder()
    integer_checkpoint.save(integer_networks.model(), folder, parent="p" * 64, overwrite=True)
    yield (folder / checkpoint.CONFIG_FILE).read_bytes()


def read_weights(data):
    checkpoint.read_tensor_file(written("weights.safetensors", data))


def weights():
    import safetensors.numpy

    yield safetensors.numpy.save({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.int8)})


def read_onnx(data):
    path = written("model.onnx", data)
    model_from_file(path)
    certify(path)


def models():
    network = integer_networks.network()
    for dialect in ("onnxruntime", "tensorrt"):
        model = onnx_from_network(network, dialect, 20)
        said = {
            Metadata.FINGERPRINT: integer_fingerprint(canonical_hash(network), Framing()),
            Metadata.FRAMING: str(Framing()),
            Metadata.DIALECT: dialect,
        }
        onnx.helper.set_model_props(model, said)
        yield model.SerializeToString()


@functools.cache
def repository():
    folder = place() / "world"
    folder.mkdir()
    gallery.build(folder / "gallery", tiny_model.codes_of(tiny_model.random_images(3)), None, None, bits=64,
                  fingerprint=tiny_model.FINGERPRINT)  # fmt: skip
    model = tiny_model.write(folder / "model.onnx")
    write_repository(
        folder / "repository", RepositorySpec(folder / "gallery", 64, 16, tiny_model.FINGERPRINT, model=model)
    )
    kept = {path: path.read_bytes() for path in sorted((folder / "repository").glob("*/config.pbtxt"))}
    return folder / "repository", kept


def read_pbtxt(data):
    folder, kept = repository()
    number, _, text = data.partition(b"\n")
    path = list(kept)[(number[0] if number else 0) % len(kept)]
    path.write_bytes(text)
    try:
        models, findings = read_models(folder)
        for model in models.values():
            findings += check_alone(model)
            if model.is_ensemble:
                findings += check_ensemble(model, models)
        if findings:
            raise InputError(findings[0].problem)
    finally:
        path.write_bytes(kept[path])


def pbtxts():
    _, kept = repository()
    for number, text in enumerate(kept.values()):
        yield bytes([number]) + b"\n" + text


NAMES = [IDS, DISTANCES, KEYS, GALLERY_VERSION, CODE]


def read_answer(data):
    try:
        result = InferResult(service_pb2.ModelInferResponse.FromString(data))
    except message.DecodeError:
        return  # gRPC refuses it before our code sees it
    found = arrays_of(result, NAMES, 2, "host:1")
    strings_of(found[KEYS])
    strings_of(found[GALLERY_VERSION])


def answers():
    response = service_pb2.ModelInferResponse(model_name="m")
    text = b"\2\0\0\0ab"
    for name, kind, width, raw in (
        (IDS, "INT64", 3, bytes(48)), (DISTANCES, "INT32", 3, bytes(24)), (KEYS, "BYTES", 3, text * 6),
        (GALLERY_VERSION, "BYTES", 1, text * 2), (CODE, "UINT8", 8, bytes(16)),
    ):  # fmt: skip
        response.outputs.add(name=name, datatype=kind, shape=[2, width])
        response.raw_output_contents.append(raw)
    yield response.SerializeToString()


def read_known_answer(data):
    known_answer.load(data.decode("latin-1"))


def known_answers():
    pixels = tiny_model.random_images(2)
    yield known_answer.dump(pixels, tiny_model.codes_of(pixels)).encode("latin-1")


def read_array(data):
    load_npy(written("images.npy", data), "images")


def arrays():
    for array in (np.zeros((2, 4, 4, 3), np.uint8), np.zeros((3, 2), np.int64, order="F")):
        buffer = io.BytesIO()
        np.save(buffer, array)
        yield buffer.getvalue()


READERS = (
    Reader("decode", lambda data: image_from_bytes(data, 16), images),
    Reader("gallery", read_gallery, galleries),
    Reader("state", read_state, states),
    Reader("config", read_config, configs),
    Reader("weights", read_weights, weights),
    Reader("onnx", read_onnx, models),
    Reader("pbtxt", read_pbtxt, pbtxts),
    Reader("answer", read_answer, answers),
    Reader("known", read_known_answer, known_answers),
    Reader("array", read_array, arrays),
)
