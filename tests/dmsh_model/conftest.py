"""Fixtures of every test of training."""

import numpy as np
import pytest

from dmsh_model.data.labelled import LabelledImages


@pytest.fixture(scope="session")
def data():
    """Three classes that differ in colour, 40 noisy 16x16 images each."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 40)
    images = random.integers(0, 120, (120, 16, 16, 3))
    images[np.arange(120), :, :, labels] += 130
    return LabelledImages("colours", images.astype(np.uint8), labels, [str(n) for n in range(120)], ["r", "g", "b"])
