import numpy as np
import pytest
from gallery_files import F, random_codes

from dmsh_serving.gallery.changes import build


@pytest.fixture
def folder(tmp_path):
    """A gallery of 40 codes of 16 bits, ids 100 to 139, with keys."""
    path = tmp_path / "gallery"
    build(path, random_codes(40), np.arange(100, 140), [f"é{i}.png" for i in range(40)], bits=16, fingerprint=F)
    return path
