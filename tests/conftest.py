"""Fixtures that several folders share: the demo checkpoint, its images, and its exports. Made once a run."""

import hypothesis
import numpy as np
import pytest
from project import DEMO_CHECKPOINT

from dmsh_serving.program import let_openmp_sleep

let_openmp_sleep()

# How long an example takes says something of the machine, nothing of the code.
hypothesis.settings.register_profile("shared-machine", deadline=None)
hypothesis.settings.load_profile("shared-machine")


@pytest.fixture(scope="session", autouse=True)
def no_lines_of_progress():
    """Keep stderr free of what only a slow machine writes: lines that say how far long work has come."""
    from dmsh_serving import progress

    progress.SECONDS_BETWEEN_LINES = float("inf")


@pytest.fixture(scope="session")
def demo_model():
    import dmsh_model

    return dmsh_model.load(DEMO_CHECKPOINT)


@pytest.fixture(scope="session")
def mnist():
    """All 5,000 images of MNIST-5k with their labels."""
    from dmsh_model.data.load import MNIST_5K, load_labelled

    return load_labelled(MNIST_5K, 32)


@pytest.fixture(scope="session")
def demo_exports(demo_model, mnist, tmp_path_factory):
    """The demo model exported folded and not, each proven on all 5,000 images: {name: OnnxExport}."""
    from dmsh_export.to_onnx.float import export_onnx

    folder = tmp_path_factory.mktemp("exports")
    return {
        name: export_onnx(demo_model, folder / f"{name}.onnx", mnist.images, folded=name == "folded", max_batch=32)
        for name in ("folded", "unfolded")
    }


@pytest.fixture(scope="session")
def split(mnist):
    """500 queries, a database of the other 4,500."""
    from dmsh_model.data.split import SplitOptions, split_images

    return split_images(mnist, SplitOptions())


@pytest.fixture(scope="session")
def codes(demo_model, mnist):
    """PyTorch's codes of all 5,000 images."""
    return demo_model.codes(mnist.images, batch_size=500)


@pytest.fixture(scope="session")
def served(demo_model, demo_exports, mnist, codes, split, tmp_path_factory):
    """A live Triton that serves the folded export over a gallery of the 4,500 database images."""
    from dmsh_serving import gallery
    from dmsh_serving.triton.repository import write_repository
    from dmsh_serving.triton.server.launcher import TritonServer
    from dmsh_serving.triton.spec import RepositorySpec

    folder = tmp_path_factory.mktemp("served")
    gallery.build(
        folder / "gallery",
        codes[split.database],
        np.arange(len(split.database)),
        [mnist.names[index] for index in split.database],
        bits=64,
        fingerprint=demo_model.fingerprint,
    )
    spec = RepositorySpec(
        gallery=folder / "gallery",
        bits=64,
        image_size=32,
        fingerprint=demo_model.fingerprint,
        model=demo_exports["folded"].path,
        framing=demo_model.config.framing,
    )
    write_repository(folder / "model_repository", spec)
    with TritonServer(folder / "model_repository", log_file=folder / "triton.log") as server:
        yield server


@pytest.fixture
def small_images():
    """Sixteen images of 32 x 32."""
    from dmsh_export.compare.generated import generated_images

    return np.ascontiguousarray(generated_images(16, 32))


@pytest.fixture(scope="session")
def encoders(demo_model, tmp_path_factory):
    """Encoders for TensorRT, each exported when first asked for: see trt_models.Encoders."""
    from trt_models import Encoders

    return Encoders(tmp_path_factory.mktemp("encoders"), demo_model)


@pytest.fixture(scope="session")
def web_world(tmp_path_factory):
    """Ten thousand tiny images with their files, gallery and metadata: see web_world.WebWorld."""
    from web_world import WebWorld

    return WebWorld.make(tmp_path_factory.mktemp("web"))


@pytest.fixture(scope="session")
def web_triton(web_world):
    """A live Triton over them."""
    from dmsh_serving.client import SearchClient

    with web_world.triton() as server:
        with SearchClient(server.url, timeout=120) as client:  # compiles what it searches with, where none has yet
            client.search(np.zeros((1, 16, 16, 3), np.uint8), 1)
        yield server


@pytest.fixture(scope="session")
def web_page(web_world, web_triton):
    """The page over both, with everything at hand."""
    with web_world.page(web_triton.url) as page:
        yield page
