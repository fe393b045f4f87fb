import numpy as np
import torch

from dmsh_model.config import HashConfig
from dmsh_model.frozen.thaw import normalise_positions
from dmsh_model.network import DMSH


def test_the_variance_of_positions_changes_nothing_that_the_network_computes():
    torch.manual_seed(0)
    model = DMSH(HashConfig("vgg_small", 16, 16, lateral_features=8, fusion_features=16)).eval()
    images = np.random.default_rng(0).integers(0, 256, (70, 16, 16, 3)).astype(np.uint8)
    with torch.no_grad():
        for lateral in model.laterals:
            lateral.norm.running_var.uniform_(0.001, 0.01)
    before = model.logits(images)
    normalise_positions(model, images)
    assert np.abs(model.logits(images) - before).max() < 1e-5
    with torch.no_grad():
        first = model.laterals[0].conv(model.features(torch.from_numpy(images))[0])
    assert torch.allclose(model.laterals[0].norm.running_var, first.var((0, 2, 3), correction=0), rtol=1e-3)
