import numpy as np
import pytest

from dmsh_model.evaluation import coding
from dmsh_model.evaluation.coding import chunks_of, codes_of_rows


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11])
def test_chunks_give_the_codes_of_all_rows_in_order(monkeypatch, count):
    monkeypatch.setattr(coding, "_IMAGES_AT_ONCE", 4)
    images = np.random.default_rng(0).integers(0, 256, (20, 2, 2, 3), np.uint8)
    rows = np.random.default_rng(1).permutation(20)[:count]
    sizes, done = [], []

    def first_channel(chunk):
        sizes.append(len(chunk))
        return chunk[:, 0, 0, :]

    codes = codes_of_rows(first_channel, images, rows, on_chunk=lambda: done.append(1))
    assert (codes == images[rows, 0, 0]).all()
    assert max(sizes) <= 4
    assert len(sizes) == len(done) == chunks_of(rows)
