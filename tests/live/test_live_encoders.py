"""Encoders for other backends, as far as the Triton that pip installs goes: it reads them, and lacks the backend."""

import numpy as np
import pytest
import tiny_model
from live_world import World
from plan_files import write_plan

from dmsh_export.compare.parity import compare
from dmsh_export.compare.runners import TritonRunner
from dmsh_serving.checks import TRUST_PLAN_CODE
from dmsh_serving.codes import Encoded
from dmsh_serving.encoder import known_answer, openvino
from dmsh_serving.errors import DmshError, MissingError
from dmsh_serving.triton.repository import write_repository
from dmsh_serving.triton.spec import (
    OnnxRuntimeBackend,
    OpenVinoBackend,
    Plan,
    PythonBackend,
    RepositorySpec,
    TensorRTAccelerator,
    TensorRTBackend,
)

HERE = openvino.why_not_here(integer=True)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tensorrt"])
def test_a_configuration_is_read_by_the_real_server_and_its_missing_backend_named(tmp_path, backend, monkeypatch):
    monkeypatch.setenv(TRUST_PLAN_CODE, "1")
    world = World.make(tmp_path)
    if backend == "tensorrt":
        plans = tuple(
            Plan(write_plan(tmp_path / f"{capability}.plan"), (capability,), 1, 4, 8, version_compatible=True)
            for capability in ("8.6", "9.0")
        )
        kind = {"encoder": TensorRTBackend(plans)}
    elif backend == "openvino":
        kind = {"encoder": OpenVinoBackend(), "model": tmp_path / "model.onnx"}
    else:
        accelerator = TensorRTAccelerator(cache="/cache")
        kind = {"encoder": OnnxRuntimeBackend(accelerator), "model": tmp_path / "model.onnx"}
    spec = RepositorySpec(
        world.gallery, tiny_model.BITS, tiny_model.SIZE, tiny_model.FINGERPRINT, max_batch=8, max_queue=64, **kind
    )
    write_repository(world.repository, spec)
    with pytest.raises(MissingError, match=f"dmsh_encoder does not load: .*{backend}") as error, world.server():
        pass
    assert "\n" not in str(error.value)


def openvino_world(folder, *, dialect=None, answer=None):
    """A world whose encoder is OpenVINO in the Python backend: two instances of two streams."""
    world = World.make(folder)
    said = {} if dialect is None else {"dialect": dialect}
    model = tiny_model.write(folder / "model.onnx", answer=answer, **said)
    encoder = PythonBackend(runtime="openvino", streams=2, instances=2)
    fields = {"gallery": world.gallery, "bits": tiny_model.BITS, "image_size": tiny_model.SIZE, "max_batch": 8}
    spec = RepositorySpec(**fields, fingerprint=tiny_model.FINGERPRINT, model=model, encoder=encoder)
    write_repository(world.repository, spec)
    return world


@pytest.mark.skipif(HERE is not None, reason=f"OpenVINO cannot serve here: {HERE}")
def test_openvino_serves_codes_of_single_images_and_batches(tmp_path):
    images = tiny_model.random_images(41)
    with openvino_world(tmp_path).server() as server, TritonRunner(f"triton://{server.url}/dmsh_encoder") as runner:
        together = runner.infer(images)
        alone = [runner.infer(images[row : row + 1]).code for row in range(5)]
    np.testing.assert_array_equal(together.code, tiny_model.codes_of(images))
    np.testing.assert_array_equal(np.concatenate(alone), tiny_model.codes_of(images[:5]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dialect": "onnxruntime"}, "is in the onnxruntime dialect, and OpenVINO crashes while it reads that"),
        ({"answer": "wrong"}, r"known answer: 1 of 128 bits differ.*\(in OpenVINO\)"),
    ],
)
def test_what_openvino_must_not_serve_keeps_the_server_from_starting_in_one_line(tmp_path, changes, message):
    if changes.get("answer"):
        if HERE is not None:
            pytest.skip(f"OpenVINO cannot serve here: {HERE}")
        images = tiny_model.random_images(2)
        codes = tiny_model.codes_of(images)
        codes[1, 3] ^= 16
        changes = {"answer": known_answer.dump(images, codes)}
    with pytest.raises(DmshError, match=message) as error, openvino_world(tmp_path, **changes).server():
        pass
    assert "\n" not in str(error.value)


class Reference:
    """The checkpoint that a low-precision encoder was made from, here with the very same codes."""

    name, bits, image_size, fingerprint = "reference", tiny_model.BITS, tiny_model.SIZE, "cd" * 32
    parent_fingerprint, framing, is_exact = None, None, False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def infer(self, images):
        return Encoded(tiny_model.codes_of(images), tiny_model.logits_of(images).astype(np.float32))


def test_a_served_low_precision_encoder_is_compared_with_the_checkpoint_it_was_made_from(tmp_path):
    world = World.make(tmp_path)
    config = world.repository / "dmsh_encoder" / "config.pbtxt"  # as a plan's says it
    said = f'parameters {{ key: "parent_fingerprint" value {{ string_value: "{Reference.fingerprint}" }} }}'
    config.write_text(f"{config.read_text()}\n{said}\n")
    with world.server() as server:
        report = compare(
            Reference(), [TritonRunner(f"triton://{server.url}/dmsh_encoder")], tiny_model.random_images(9), max_batch=2
        )
    (target,) = report.targets
    assert target.wrong_bits == 0
