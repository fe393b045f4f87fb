"""The accuracy programs: a data set out of a package, and mAP of float, quantised and fine-tuned networks."""

import json
import shutil
import subprocess
import zipfile

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from benchmarks.accuracy import __main__ as accuracy
from benchmarks.paper import clipart as clipart
from PIL import Image

from dmsh_model import checkpoint
from dmsh_model.data.load import load_labelled
from dmsh_model.integer import checkpoint as integer_checkpoint
from dmsh_serving.errors import CheckError, InputError, MissingError

needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="no dpkg-deb: packages are Debian's")


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Two categories of 30 drawings, one of them with a sub-category of 30; links, a damaged file, a small one."""
    root = tmp_path_factory.mktemp("package") / "root"
    random = np.random.default_rng(0)
    for category, colour in (("food/fruit", 0), ("animals", 1), ("animals/birds", 2), ("unsorted", 1), ("rare", 0)):
        folder = root / "usr/share/openclipart/png" / category
        folder.mkdir(parents=True)
        for number in range(5 if category == "rare" else 30):
            pixels = random.integers(0, 90, (20, 24, 4), np.uint8)
            pixels[..., colour] += 150
            pixels[..., 3] = 255
            pixels[:4, ..., 3] = 0  # white once it is decoded
            Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    fruit = root / "usr/share/openclipart/png/food/fruit"
    (fruit / "zz-broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (fruit / "zz-link.png").symlink_to("00.png")
    terms = root / "usr/share/doc/openclipart-png/copyright"
    terms.parent.mkdir(parents=True)
    terms.write_text("public domain\n")
    return root


@pytest.fixture(scope="module")
def package(drawings):
    control = drawings / "DEBIAN" / "control"
    control.parent.mkdir()
    control.write_text(
        "Package: openclipart-png\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: drawings\n"
    )
    path = drawings.parent / "openclipart.deb"
    subprocess.run(["dpkg-deb", "-b", str(drawings), str(path)], check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def folder(package, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "clipart"
    clipart.make(out, package, image_size=16, least=25, most=40)
    return out


@needs_dpkg
def test_classes_are_the_lowest_categories_with_enough_drawings_decoded_as_served(folder):
    found = load_labelled(str(folder), 16)
    assert found.class_names == ["animals-birds", "food-fruit"]  # animals itself is no class beside its birds
    assert np.bincount(found.labels).tolist() == [30, 30]  # neither the damaged file nor the link counts
    assert (found.images[:, 0] == 255).all()


@needs_dpkg
def test_an_archive_holds_the_drawings_as_webp_with_their_terms_and_the_same_bytes_each_time(package, folder, tmp_path):
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        clipart.make(tmp_path / place / "toys.zip", package, image_size=16, least=25, most=40)
    assert (tmp_path / "one" / "toys.zip").read_bytes() == (tmp_path / "two" / "toys.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one" / "toys.zip") as archive:
        assert archive.read("LICENCE") == b"public domain\n"
        archive.extractall(tmp_path)
    found, original = load_labelled(str(tmp_path / "toys"), 16), load_labelled(str(folder), 16)
    assert (found.class_names, found.labels.tolist()) == (original.class_names, original.labels.tolist())
    assert np.abs(found.images.astype(int) - original.images).mean() < 40  # lossy, on noise
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["toys.zip"]


@needs_dpkg
def test_an_archive_without_the_terms_of_its_drawings_is_refused(drawings, tmp_path):
    categories = drawings / "usr/share/openclipart/png"
    assert clipart.licence_beside(categories).read_text() == "public domain\n"
    with pytest.raises(InputError, match="must carry the terms"):
        clipart.licence_beside(tmp_path / "usr/share/openclipart/png")


@needs_dpkg
def test_a_class_takes_no_more_drawings_than_asked_for(package, tmp_path):
    clipart.make(tmp_path / "few", package, image_size=16, least=25, most=26)
    assert [len(list(path.iterdir())) for path in sorted((tmp_path / "few").iterdir())] == [26, 26]


@needs_dpkg
def test_a_wrong_package_or_a_taken_place_is_refused_and_nothing_is_left(package, folder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="exists already"):
        clipart.make(folder, package)
    (tmp_path / "text.deb").write_text("no package")
    for file, message in (("text.deb", "is not the package openclipart-png"), ("absent.deb", "does not exist")):
        with pytest.raises(InputError, match=message):
            clipart.make(tmp_path / "out", tmp_path / file)
    with pytest.raises(InputError, match="0 categories of at least 99 drawings"):
        clipart.make(tmp_path / "out", package, least=99)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingError, match="dpkg-deb is missing"):
        clipart.make(tmp_path / "out", package)
    with pytest.raises(MissingError, match="apt-get is missing: fetch the"):
        clipart.make(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["text.deb"]


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Two classes of 45 images."""
    root = tmp_path_factory.mktemp("data") / "colours"
    random = np.random.default_rng(1)
    for channel, name in enumerate(("red", "green")):
        (root / name).mkdir(parents=True)
        for number in range(45):
            pixels = random.integers(0, 120, (16, 16, 3), np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.mark.program
def test_every_network_is_measured_and_the_float_one_is_made_once(colours, tmp_path, capsys, monkeypatch):
    for goal in ("QUANTISED_GOAL", "TUNED_GOAL"):
        monkeypatch.setattr(accuracy, goal, 100)  # ten queries of a network that saw one epoch say nothing

    def run(epochs):
        accuracy.accuracy(
            [str(colours)],
            seeds=2,
            epochs=epochs,
            tuning_epochs=1,
            queries_per_class=5,
            image_size=16,
            work=tmp_path / "work",
            json=tmp_path / "result.json",
        )
        return json.loads((tmp_path / "result.json").read_text())

    result = run(1)
    assert [(row["data"], row["seed"]) for row in result["rows"]] == [
        ("colours, vgg_small, 16 pixels", seed) for seed in (0, 1)
    ]
    for row in result["rows"]:
        folder = tmp_path / "work" / "colours" / "vgg_small-16" / str(row["seed"])
        assert row["float_map"] == checkpoint.read_header(folder / "float")["training"]["map_all"]
        assert 0 < row["static_map"] <= 1
        record = checkpoint.read_header(folder / "tuned")["quantisation"]
        assert row["fine_tuned_map"] == record["fine_tuning"]["after"]["map_all"]
        assert record["calibration_images"] == 64  # four of five training images: no query calibrates
        assert record["fine_tuning"]["made_from"] == integer_checkpoint.load(folder / "integer").fingerprint
    assert "mean ± spread" in capsys.readouterr().out
    made = [(tmp_path / f"work/colours/vgg_small-16/{seed}/float/config.json").stat().st_mtime_ns for seed in (0, 1)]
    assert run(1) == result
    assert [
        (tmp_path / f"work/colours/vgg_small-16/{seed}/float/config.json").stat().st_mtime_ns for seed in (0, 1)
    ] == made
    run(2)  # other options: trained anew
    assert checkpoint.read_header(tmp_path / "work/colours/vgg_small-16/0/float")["training"]["options"]["epochs"] == 2


@pytest.mark.parametrize(
    ("quantised", "tuned", "message"),
    [
        ((0.7945, 0.796), (0.8, 0.8), None),
        ((0.793, 0.796), (0.8, 0.8), "set: 0.55 points lost after quantize alone, 0.5 are allowed"),
        ((0.81, 0.81), (0.7995, 0.7982), "set: 0.12 points lost after fine-tuning, 0.1 are allowed"),
    ],
)
def test_a_mean_loss_above_its_goal_fails_and_says_which(tmp_path, quantised, tuned, message):
    rows = [accuracy.Row("set", seed, 0.8, quantised[seed], tuned[seed], 0.99, 0.995, 0.77) for seed in (0, 1)]
    if message is None:
        accuracy.report(rows, tmp_path / "result.json")
    else:
        with pytest.raises(CheckError, match=message):
            accuracy.report(rows, tmp_path / "result.json")
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["means"]["set"]["static_int8_points_lost"] == pytest.approx(3)
    assert written["missed"] == ([] if message is None else [message])
    assert written["means"]["set"]["quantised_points_lost"] == pytest.approx(80 - 50 * sum(quantised))


@pytest.mark.program
def test_a_head_on_frozen_weights_is_measured_and_made_once_for_the_same_weights(colours, tmp_path, monkeypatch):
    for goal in ("QUANTISED_GOAL", "TUNED_GOAL"):
        monkeypatch.setattr(accuracy, goal, 100)

    def run(seed):
        torch.manual_seed(seed)
        weights = timm.create_model("test_resnet").state_dict()
        safetensors.torch.save_file(weights, tmp_path / "weights.safetensors")
        accuracy.accuracy(
            [str(colours)],
            seeds=1,
            epochs=2,
            tuning_epochs=1,
            queries_per_class=5,
            image_size=32,
            pretrained=str(tmp_path / "weights.safetensors"),
            backbone="test_resnet",
            work=tmp_path / "work",
            json=tmp_path / "result.json",
        )
        (row,) = json.loads((tmp_path / "result.json").read_text())["rows"]
        return row, checkpoint.read_header(tmp_path / "work/colours/test_resnet-32/0/float")["fingerprint"]

    row, made = run(0)
    assert row["data"] == "colours, test_resnet, 32 pixels"
    assert run(0) == (row, made)
    assert run(1)[1] != made  # other weights
