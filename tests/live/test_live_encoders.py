"""Encoders for other backends, as far as the Triton that pip installs goes: it reads them, and lacks the backend."""

import pytest
import tiny_model
from live_world import World
from plan_files import write_plan

from dmsh_serving.errors import MissingError
from dmsh_serving.repository import RepositorySpec, write_repository
from dmsh_serving.repository_spec import OnnxRuntimeEncoder, Plan, TensorRTAccelerator, TensorRTEncoder


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_a_configuration_is_read_by_the_real_server_and_its_missing_backend_named(tmp_path, backend):
    world = World.make(tmp_path)
    if backend == "tensorrt":
        plans = tuple(
            Plan(write_plan(tmp_path / f"{capability}.plan"), (capability,), 1, 4, 8, version_compatible=True)
            for capability in ("8.6", "9.0")
        )
        kind = {"encoder": TensorRTEncoder(plans)}
    else:
        accelerator = TensorRTAccelerator("FP16", cache="/cache")
        kind = {"encoder": OnnxRuntimeEncoder(accelerator), "model": tmp_path / "model.onnx"}
    spec = RepositorySpec(
        world.gallery, tiny_model.BITS, tiny_model.SIZE, tiny_model.FINGERPRINT, max_batch=8, max_queue=64, **kind
    )
    write_repository(world.repository, spec)
    with pytest.raises(MissingError, match=f"dmsh_encoder does not load: .*{backend}") as error, world.server():
        pass
    assert "\n" not in str(error.value)
