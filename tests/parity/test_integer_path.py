"""The integer encoder from end to end: quantised, proven, exported, served by a live Triton, and not one bit lost."""

import numpy as np
import pytest

from dmsh_export.compare.parity import compare
from dmsh_export.compare.runners import TorchRunner, TritonRunner
from dmsh_export.quantise.run import quantise
from dmsh_export.to_onnx.integer import export_integer_onnx
from dmsh_serving import gallery
from dmsh_serving.images.read import ImageSet
from dmsh_serving.triton.repository import write_repository
from dmsh_serving.triton.server.launcher import TritonServer
from dmsh_serving.triton.spec import RepositorySpec

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def integer_model(demo_model, mnist):
    images = np.ascontiguousarray(mnist.images[::40])
    return quantise(demo_model, [ImageSet(images, [f"{row}" for row in range(len(images))], [])]).model


def test_a_live_triton_gives_the_integer_codes_of_1000_images(integer_model, mnist, tmp_path):
    images = np.ascontiguousarray(mnist.images[::5])
    export = export_integer_onnx(integer_model, tmp_path / "model.onnx", images[:64], max_batch=2)
    gallery.build(
        tmp_path / "gallery",
        integer_model.codes(images[:100]),
        np.arange(100),
        None,
        bits=64,
        fingerprint=integer_model.fingerprint,
    )
    spec = RepositorySpec(
        gallery=tmp_path / "gallery",
        bits=64,
        image_size=32,
        fingerprint=integer_model.fingerprint,
        model=export.path,
        framing=integer_model.config.framing,
    )
    write_repository(tmp_path / "model_repository", spec)
    with TritonServer(tmp_path / "model_repository", log_file=tmp_path / "triton.log") as server:
        target = TritonRunner(f"triton://{server.url}/dmsh_encoder")
        report = compare(TorchRunner(integer_model), [target], images, max_batch=32)
    assert report.targets[0].bits_compared == 64_000
    assert (report.targets[0].wrong_bits, report.targets[0].worst_logit_error) == (0, 0)
    assert report.passed, report.summary()
