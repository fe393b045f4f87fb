"""Encoders for other backends, as far as the Triton that pip installs goes: it reads them, and lacks the backend."""

import numpy as np
import pytest
import tiny_model
from live_world import World
from plan_files import write_plan
from typer.testing import CliRunner

from dmsh_export.cli import app
from dmsh_export.compare.parity import compare
from dmsh_export.compare.runners import TritonRunner
from dmsh_serving.checks import TRUST_PLAN_CODE
from dmsh_serving.codes import Encoded
from dmsh_serving.errors import MissingError
from dmsh_serving.triton.repository import write_repository
from dmsh_serving.triton.spec import OnnxRuntimeEncoder, Plan, RepositorySpec, TensorRTAccelerator, TensorRTEncoder


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_a_configuration_is_read_by_the_real_server_and_its_missing_backend_named(tmp_path, backend, monkeypatch):
    monkeypatch.setenv(TRUST_PLAN_CODE, "1")
    world = World.make(tmp_path)
    if backend == "tensorrt":
        plans = tuple(
            Plan(write_plan(tmp_path / f"{capability}.plan"), (capability,), 1, 4, 8, version_compatible=True)
            for capability in ("8.6", "9.0")
        )
        kind = {"encoder": TensorRTEncoder(plans)}
    else:
        accelerator = TensorRTAccelerator(cache="/cache")
        kind = {"encoder": OnnxRuntimeEncoder(accelerator), "model": tmp_path / "model.onnx"}
    spec = RepositorySpec(
        world.gallery, tiny_model.BITS, tiny_model.SIZE, tiny_model.FINGERPRINT, max_batch=8, max_queue=64, **kind
    )
    write_repository(world.repository, spec)
    with pytest.raises(MissingError, match=f"dmsh_encoder does not load: .*{backend}") as error, world.server():
        pass
    assert "\n" not in str(error.value)


class Reference:
    """The checkpoint that a low-precision encoder was made from, here with the very same codes."""

    name, bits, image_size, fingerprint = "reference", tiny_model.BITS, tiny_model.SIZE, "cd" * 32
    parent_fingerprint = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def infer(self, images):
        return Encoded(tiny_model.codes_of(images), tiny_model.logits_of(images).astype(np.float32))


def test_a_served_low_precision_encoder_is_compared_with_the_checkpoint_it_was_made_from(tmp_path):
    world = World.make(tmp_path)
    model = tiny_model.write(tmp_path / "low.onnx", parent_fingerprint=Reference.fingerprint)
    made = CliRunner().invoke(
        app,
        ["repository", str(model), "--gallery", str(world.gallery), "--out", str(world.repository), "--overwrite"],
    )
    assert made.exit_code == 0, made.output
    with world.server() as server:
        report = compare(
            Reference(), [TritonRunner(f"triton://{server.url}/dmsh_encoder")], tiny_model.random_images(9), max_batch=2
        )
    (target,) = report.targets
    assert target.wrong_bits == 0
