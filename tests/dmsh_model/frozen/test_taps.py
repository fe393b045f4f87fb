import numpy as np
import pytest
import torch

from dmsh_model.config import HashConfig
from dmsh_model.frozen.taps import PooledTrunk
from dmsh_model.network import DMSH
from dmsh_serving.errors import InputError

CONFIG = HashConfig("vgg_small", 16, 16, lateral_features=8, fusion_features=16)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DMSH(CONFIG).eval()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (300, 16, 16, 3)).astype(np.uint8)


def test_taps_are_the_means_of_the_feature_maps(model, images):
    with torch.no_grad():
        maps = model.features(torch.from_numpy(images))
    expected = torch.cat([each.mean((2, 3)) for each in maps], 1).numpy()
    assert np.abs(PooledTrunk(model).of_images(images) - expected).max() < 1e-5


def test_an_interrupted_run_goes_on_where_it_was(model, images, tmp_path, monkeypatch):
    whole = PooledTrunk(model).of_images(images)

    def interrupt(done, total):
        if done == 256:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PooledTrunk(model, tmp_path).of_images(images, interrupt)
    computed, seen = [], []
    original = PooledTrunk._computed
    monkeypatch.setattr(PooledTrunk, "_computed", lambda self, b: computed.append(len(b)) or original(self, b))
    resumed = PooledTrunk(model, tmp_path).of_images(images, lambda *counts: seen.append(counts))
    assert computed == [44]
    assert seen == [(128, 300), (256, 300), (300, 300)]
    assert np.array_equal(resumed, whole)


@pytest.mark.parametrize("damage", [b"", b"not an array", "half", "other"])
def test_a_damaged_file_is_computed_again(model, images, tmp_path, damage):
    whole = PooledTrunk(model, tmp_path).of_images(images[:10])
    file, *_ = tmp_path.glob("taps-*/*-3.npy")
    before = np.load(file)
    if damage == "other":
        np.save(file, before[:, :3])
    else:
        file.write_bytes(file.read_bytes()[:200] if damage == "half" else damage)
    assert np.array_equal(PooledTrunk(model, tmp_path).of_images(images[:10]), whole)
    assert np.array_equal(np.load(file), before)


def test_another_trunk_or_preprocessing_is_another_folder(model, images, tmp_path):
    notes = []
    PooledTrunk(model, tmp_path, on_note=notes.append).of_images(images[:2])
    assert notes == []
    other = DMSH(HashConfig("vgg_small", 16, 16, lateral_features=8, fusion_features=16, mean=(0.5, 0.5, 0.5)))
    other.load_state_dict(model.state_dict())
    PooledTrunk(other, tmp_path, on_note=notes.append).of_images(images[:2])
    assert len(list(tmp_path.glob("taps-*"))) == 2
    assert notes == [f"{tmp_path} holds the features of other weights or preprocessing: they are computed anew"]


def test_a_head_of_other_weights_uses_the_same_taps(model, images, tmp_path):
    PooledTrunk(model, tmp_path).of_images(images[:2])
    wider = DMSH(HashConfig("vgg_small", 32, 16, lateral_features=16, fusion_features=16))
    wider.backbone.load_state_dict(model.backbone.state_dict())
    notes = []
    PooledTrunk(wider, tmp_path, on_note=notes.append)
    assert (notes, len(list(tmp_path.glob("taps-*")))) == ([], 1)


def test_one_scale_of_a_trunk_reads_what_three_have_kept(model, images, tmp_path, monkeypatch):
    three = PooledTrunk(model, tmp_path)
    expected = three.of_images(images[:200])
    last = DMSH(HashConfig("vgg_small", 16, 16, taps=model.taps[-1:], lateral_features=8, fusion_features=16))
    last.backbone.load_state_dict(model.backbone.state_dict())
    one = PooledTrunk(last, tmp_path)
    monkeypatch.setattr(PooledTrunk, "_computed", lambda *_: pytest.fail("the trunk is computed again"))
    assert np.array_equal(one.of_images(images[:200]), expected[:, -three.channels[-1] :])


def test_a_cache_that_is_a_file_is_refused(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is not a folder: taps are kept in one"):
        PooledTrunk(model, tmp_path / "file")
