import numpy as np
import pytest
import torch
from PIL import Image

from dmsh_export.to_onnx.fold import fold
from dmsh_model import checkpoint
from dmsh_model.config import HashConfig
from dmsh_model.evaluation.pairs import measure_pairs
from dmsh_model.frozen.taps import PooledTrunk
from dmsh_model.network import DMSH
from dmsh_model.unlabelled.run import fit_unlabelled
from dmsh_model.weights.read import read_pretrained
from dmsh_serving.codes import pack
from dmsh_serving.errors import InputError
from dmsh_serving.images.read import load_images

CONFIG = HashConfig("vgg_small", 16, 16)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "vgg_small.pth"
    torch.save(DMSH(CONFIG).backbone.state_dict(), path)
    return read_pretrained(str(path), "vgg_small")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two hundred images of smooth random patterns, and as many noisy copies of them."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for number in range(200):
        small = Image.fromarray(random.integers(0, 256, (3, 3, 3), np.uint8))
        image = np.asarray(small.resize((16, 16), Image.Resampling.BICUBIC))
        noisy = np.clip(image + random.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
        for part, pixels in (("database", image), ("queries", noisy)):
            (root / part).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(root / part / f"{number:03d}.png")
    return root


def plain_numpy_itq(taps, bits, seed=0):
    """PCA and ITQ as the paper's few lines, on standardised features; returns what codes features."""
    mean, deviation = taps.astype(float).mean(0), taps.astype(float).std(0)
    deviation[deviation < 1e-5 * np.abs(mean) + 1e-12] = np.inf
    centred = (taps - mean) / deviation
    projection = np.linalg.svd(centred, full_matrices=False)[2][:bits].T
    projection = projection * np.sign(projection[np.abs(projection).argmax(0), np.arange(bits)])
    rotation = np.linalg.qr(np.random.RandomState(seed).standard_normal((bits, bits)))[0]
    values = centred @ projection
    for _ in range(50):
        left, _, right = np.linalg.svd(np.where(values @ rotation > 0, 1, -1).T @ values)
        rotation = (left @ right).T
    return lambda other: pack((((other - mean) / deviation) @ projection @ rotation).astype(np.float32))


def test_codes_find_pairs_no_worse_than_plain_pca_and_itq_on_the_same_features(folder, weights, tmp_path):
    record = fit_unlabelled(CONFIG, folder / "database", tmp_path / "model", weights)
    assert record["unlabelled"]["images"] == 200
    model = checkpoint.load(tmp_path / "model")
    images, queries = (load_images(folder / part, 16).images for part in ("database", "queries"))
    trunk = PooledTrunk(model)
    plain = plain_numpy_itq(trunk.of_images(images), 16)
    pairs = [(row, [row]) for row in range(200)]
    ours = measure_pairs(model.codes(queries), model.codes(images), pairs, ks=[1])
    theirs = measure_pairs(plain(trunk.of_images(queries)), plain(trunk.of_images(images)), pairs, ks=[1])
    assert theirs.recall[1] > 0.1
    assert ours.recall[1] >= theirs.recall[1] - 0.01  # two of the queries: float32 rounds a logit near 0 either way
    differing = np.unpackbits(model.codes(images) ^ plain(trunk.of_images(images)))
    assert differing.mean() < 0.005


def test_the_folded_network_is_one_matrix_that_gives_the_same_logits(folder, weights, tmp_path):
    fit_unlabelled(CONFIG, folder / "database", tmp_path / "model", weights)
    model = checkpoint.load(tmp_path / "model")
    images = load_images(folder / "queries", 16).images
    folded, _ = fold(model)
    with torch.inference_mode():
        assert np.abs(folded(torch.from_numpy(images)).numpy() - model.logits(images)).max() < 1e-3
    assert len(folded.head) == 1
    learnt = model.codes(load_images(folder / "database", 16).images)
    assert 0.4 < np.unpackbits(learnt).mean() < 0.6


def test_a_sample_of_the_folder_is_enough_and_the_same_every_time(folder, weights, tmp_path):
    records = [fit_unlabelled(CONFIG, folder, tmp_path / name, weights, sample=150) for name in ("one", "two")]
    assert records[0]["unlabelled"]["images"] == 150
    one, two = (checkpoint.load(tmp_path / name) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint


def test_unreadable_images_stop_or_are_counted(folder, weights, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for file in sorted((folder / "database").iterdir())[:60]:
        (photos / file.name).write_bytes(file.read_bytes())
    (photos / "bad.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1 of 61 files cannot be read .*bad.png"):
        fit_unlabelled(CONFIG, photos, tmp_path / "model", weights)
    record = fit_unlabelled(CONFIG, photos, tmp_path / "model", weights, skip_bad=True)
    assert record["unlabelled"] == {"method": "PCA and ITQ", "images": 60, "bad": 1, "seed": 0}


def test_too_many_bits_and_no_sample_are_refused(folder, weights, tmp_path):
    with pytest.raises(InputError, match="512 bits are more than"):
        fit_unlabelled(HashConfig("vgg_small", 512, 16), folder, tmp_path / "model", weights)
    with pytest.raises(InputError, match="sample = 1 must be at least 2 images"):
        fit_unlabelled(CONFIG, folder, tmp_path / "model", weights, sample=1)
    assert list(tmp_path.iterdir()) == []
