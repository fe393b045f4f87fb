"""Plans built and run for real: the demo model on this machine's GPU, with each TensorRT that is installed."""

import importlib.util
import json

import numpy as np
import pytest

from dmsh_export.compare.parity import compare
from dmsh_export.compare.runners import OnnxRunner, TorchRunner
from dmsh_export.engine.build import BatchProfile, EngineOptions, engine_from_onnx
from dmsh_export.engine.runner import TensorRTRunner
from dmsh_export.engine.tensorrt_api import find_gpu
from dmsh_export.manifest import manifest_path
from dmsh_serving.errors import InputError, MissingError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(find_gpu() is None, reason="no NVIDIA GPU (or no driver) on this machine"),
]
MAX_BATCH = 8


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def flavour(request):
    module = request.param.replace("-", "_")
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


@pytest.fixture(scope="module")
def plan(flavour, demo_exports, tmp_path_factory):
    out = tmp_path_factory.mktemp("plan") / "model.plan"
    options = EngineOptions(precision="fp32", profile=BatchProfile(1, 4, MAX_BATCH), runtime=flavour)
    engine_from_onnx(demo_exports["folded"].path, out, options)
    return out


def test_an_fp32_plan_gives_the_very_bits_of_pytorch_in_every_slot_of_every_batch(plan, demo_model, mnist):
    report = compare(TorchRunner(demo_model), [TensorRTRunner(plan)], mnist.images, max_batch=MAX_BATCH)
    assert report.passed, report.summary()


def test_more_images_than_the_profile_takes_are_split_and_none_is_no_error(plan, mnist):
    with TensorRTRunner(plan) as runner:
        images = mnist.images[: 2 * MAX_BATCH + 3]
        together, alone = runner.infer(images), [runner.infer(images[row : row + 1]) for row in range(len(images))]
        assert runner.infer(images[:0]).code.shape == (0, runner.bits // 8)
    np.testing.assert_array_equal(together.code, np.concatenate([one.code for one in alone]))


def test_an_fp16_plan_agrees_with_its_prediction_on_the_cpu_within_the_margin(flavour, demo_exports, mnist, tmp_path):
    options = EngineOptions(precision="fp16", profile=BatchProfile(1, 4, MAX_BATCH), runtime=flavour)
    typed = tmp_path / "typed.onnx"
    engine_from_onnx(demo_exports["folded"].path, tmp_path / "model.plan", options, typed_out=typed)
    images = mnist.images[:500]
    with TensorRTRunner(tmp_path / "model.plan") as on_gpu, OnnxRunner(typed) as predicted:
        assert on_gpu.fingerprint == predicted.fingerprint
        found, expected = on_gpu.infer(images), predicted.infer(images)
    assert np.abs(found.logits - expected.logits).max() < 0.05 * np.abs(expected.logits).max()


def test_a_plan_said_to_be_for_another_version_is_refused_before_it_is_loaded(plan):
    said = manifest_path(plan).read_text()
    manifest = json.loads(said)
    manifest["tensorrt"]["version"] = "10.0.0"
    try:
        manifest_path(plan).write_text(json.dumps(manifest))
        with pytest.raises(MissingError, match=r"was built with .* 10\.0\.0 .* build it again"), TensorRTRunner(plan):
            pass
    finally:
        manifest_path(plan).write_text(said)


def test_a_closed_engine_is_not_run(plan, mnist):
    with TensorRTRunner(plan) as runner:
        pass
    with pytest.raises(InputError, match="is closed"):
        runner.infer(mnist.images[:1])
