"""Fixtures that several folders share: the demo checkpoint, its images, and its exports. Made once a run."""

import hypothesis
import numpy as np
import pytest
from project import DEMO_CHECKPOINT

# How long an example takes says something of the machine, nothing of the code.
hypothesis.settings.register_profile("shared-machine", deadline=None)
hypothesis.settings.load_profile("shared-machine")


@pytest.fixture(scope="session")
def demo_model():
    import dmsh_model

    return dmsh_model.load(DEMO_CHECKPOINT)


@pytest.fixture(scope="session")
def mnist():
    """All 5,000 images of MNIST-5k with their labels."""
    from dmsh_model.data import MNIST_5K, load_labelled

    return load_labelled(MNIST_5K, 32)


@pytest.fixture(scope="session")
def demo_exports(demo_model, mnist, tmp_path_factory):
    """The demo model exported folded and not, each proven on all 5,000 images: {name: OnnxExport}."""
    from dmsh_export.onnx import export_onnx

    folder = tmp_path_factory.mktemp("exports")
    return {
        name: export_onnx(demo_model, folder / f"{name}.onnx", mnist.images, folded=name == "folded", max_batch=32)
        for name in ("folded", "unfolded")
    }


@pytest.fixture
def small_images():
    """Sixteen images of 32 x 32."""
    from dmsh_export.generated import generated_images

    return np.ascontiguousarray(generated_images(16, 32))


@pytest.fixture(scope="session")
def encoders(demo_model, tmp_path_factory):
    """Encoders for TensorRT, each exported when first asked for: see trt_models.Encoders."""
    from trt_models import Encoders

    return Encoders(tmp_path_factory.mktemp("encoders"), demo_model)
