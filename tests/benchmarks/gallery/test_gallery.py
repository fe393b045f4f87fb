"""The benchmark of a gallery's changes: every way makes the same gallery, and a part is smaller than a snapshot."""

import numpy as np
import pytest
from benchmarks.gallery.__main__ import ADDED, keys_from, measure

from dmsh_serving import gallery


@pytest.mark.parametrize("with_keys", [False, True])
def test_every_way_adds_its_codes_and_the_chain_writes_the_least(tmp_path, with_keys):
    found = measure(tmp_path / "g", 30_000, with_keys, rounds=2)
    snapshot = gallery.open_current(tmp_path / "g")
    assert snapshot.count == 30_000 + 4 * ADDED
    if with_keys:
        assert snapshot.keys_of(np.array([0, 31_999])) == [f"{0:016d}", f"{31_999:016d}"]
    assert found["append"][1] < found["whole, at least"][1] / 10


def test_keys_are_counted_on():
    assert list(keys_from(98, 3)) == [f"{number:016d}" for number in (98, 99, 100)]
