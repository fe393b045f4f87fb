"""No fusion of OpenVINO loses a rounding of the openvino dialect; one does in the dialect that is refused."""

import fused_networks
import numpy as np
import pytest

from dmsh_export.to_onnx.dialects import onnx_from_network
from dmsh_serving.encoder import openvino
from dmsh_serving.encoder.openvino import compiled

HERE = openvino.why_not_here(integer=True)
pytestmark = pytest.mark.skipif(HERE is not None, reason=f"OpenVINO cannot serve here: {HERE}")
IMAGES = np.random.default_rng(9).integers(0, 256, (8, fused_networks.SIZE, fused_networks.SIZE, 3), dtype=np.uint8)


def different_logits(name, dialect):
    model = fused_networks.model(name)
    graph = onnx_from_network(model.network, dialect, 20).SerializeToString()
    found = compiled(graph, name, threads=1)({"image": IMAGES})["logits"]
    return int((found != model.logits(IMAGES)).sum())


@pytest.mark.parametrize("name", fused_networks.NAMES)
def test_every_logit_is_pytorchs(name):
    assert different_logits(name, "openvino") == 0


def test_the_rounding_is_lost_without_its_own_node():
    """If this fails, OpenVINO has mended it: the tensorrt dialect may then serve both."""
    assert different_logits("two convolutions", "tensorrt") > 0
