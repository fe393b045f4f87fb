"""dmsh-export quantize as a person runs it."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from command_line import dmsh_export
from PIL import Image
from project import DEMO_CHECKPOINT

import dmsh_model
from dmsh_export.quantise.calibration import POLICIES
from dmsh_export.quantise.run import MIN_IMAGES, quantise
from dmsh_model import checkpoint
from dmsh_model.evaluation.mean_average_precision import mean_average_precision
from dmsh_model.integer.reference import IntegerDMSH
from dmsh_model.network import DMSH
from dmsh_serving.errors import InputError
from dmsh_serving.images.read import ImageSet


@pytest.fixture(scope="module")
def folder(mnist, tmp_path_factory):
    """120 images of MNIST in class folders."""
    root = tmp_path_factory.mktemp("mnist")
    for row in range(0, 5000, 42):
        path = root / str(mnist.labels[row]) / f"{row}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(mnist.images[row]).save(path)
    return root


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("quantised")
    done = dmsh_export(
        "quantize", DEMO_CHECKPOINT, "--images", folder, "--out", out / "integer", "--json", out / "result.json"
    )
    assert done.returncode == 0, done.stderr
    return done, out


def test_a_checkpoint_becomes_integers_that_load_gives_back(done, mnist):
    _, out = done
    model = dmsh_model.load(out / "integer")
    assert isinstance(model, IntegerDMSH)
    header = checkpoint.read_header(out / "integer")
    assert header["parent_fingerprint"] == dmsh_model.load(DEMO_CHECKPOINT).fingerprint
    assert header["training"]["split"]["queries"] == 500
    assert header["quantisation"]["calibration_images"] == 96


def test_the_result_says_what_every_layer_and_the_codes_cost(done):
    ran, out = done
    result = json.loads((out / "result.json").read_text())
    assert result["codes"]["images"] == 24
    assert result["codes"]["equal_bits_share"] > 0.99
    assert 0 < result["codes"]["integer_map"] <= 1
    assert len(result["trials"]) == 6
    best = max(trial["logits_signal_to_noise_db"] for trial in result["trials"])
    assert result["chosen"]["logits_signal_to_noise_db"] == best
    layers = {layer["name"]: layer for layer in result["layers"]}
    assert layers["stages.0.0"]["signal_to_noise_db"] > 20
    assert layers["image"]["clipped_share"] == 0
    assert all(layer["accumulator_bits"] < 24 for layer in result["layers"] if layer["accumulator_bits"])
    assert "equal bits" in ran.stdout
    assert "mAP, integer" in ran.stdout


def test_the_same_images_give_the_same_integers(done, folder, tmp_path):
    _, out = done
    again = dmsh_export("quantize", DEMO_CHECKPOINT, "--images", folder, "--out", tmp_path / "integer")
    assert again.returncode == 0, again.stderr
    assert dmsh_model.load(tmp_path / "integer").fingerprint == dmsh_model.load(out / "integer").fingerprint


def test_at_most_half_a_point_of_map_is_lost(demo_model, mnist):
    """On 500 queries against 1,500 others, calibrated on 800 further images."""
    order = np.random.default_rng(0).permutation(5000)
    query, database, seen = order[:500], order[500:2000], order[2000:2800]
    quantised = quantise(demo_model, [ImageSet(mnist.images[seen], [str(row) for row in seen], [])])
    scores = [
        mean_average_precision(
            model.codes(mnist.images[query]),
            model.codes(mnist.images[database]),
            mnist.labels[query],
            mnist.labels[database],
        )
        for model in (demo_model, quantised.model)
    ]
    assert scores[1] > scores[0] - 0.005


def test_every_policy_is_tried_and_the_best_trial_is_the_network(demo_model, mnist):
    seen = mnist.images[:100]
    quantised = quantise(demo_model, [ImageSet(seen, [str(row) for row in range(len(seen))], [])])
    assert {trial.policy for trial in quantised.trials} == set(POLICIES)
    ratios = {trial: trial.logits_signal_to_noise_db for trial in quantised.trials}
    assert len({ratio for trial, ratio in ratios.items() if trial.equalisation == 0}) >= 3  # no two policies are one
    assert ratios[quantised.chosen] == max(ratios.values())


def test_how_the_images_are_batched_changes_no_image_of_the_calibration(demo_model, mnist):
    images, names = mnist.images[:60], [str(row) for row in range(60)]
    whole = quantise(demo_model, [ImageSet(images, names, [])])
    parts = quantise(demo_model, [ImageSet(images[i : i + 7], names[i : i + 7], []) for i in range(0, 60, 7)])
    assert whole.calibration_images == parts.calibration_images == 48
    assert whole.codes.images == parts.codes.images == 12
    assert whole.codes.float_map is None


def test_a_layer_in_front_moves_the_mean_to_0_where_grey_padding_would_cost_more_than_rounding(demo_model, mnist):
    images = ImageSet(mnist.images[::60], [str(row) for row in range(84)], [])
    black = quantise(demo_model, [images])
    assert black.centred
    assert black.padding_signal_to_noise_db < 30
    assert black.layers[1].name == "centred"
    assert black.codes.logits_signal_to_noise_db > 34
    grey = DMSH(dataclasses.replace(demo_model.config, mean=(128 / 255,) * 3))
    grey.load_state_dict(demo_model.state_dict())
    plain = quantise(grey, [images])
    assert not plain.centred
    assert plain.padding_signal_to_noise_db > 80
    assert all(layer.name != "centred" for layer in plain.layers)


def test_images_sorted_by_class_are_judged_by_all_classes(tmp_path, mnist):
    """Grey padding costs the first images of class 3 less than 30 dB asks for, but not those of the other classes."""
    rows = np.concatenate([np.flatnonzero(mnist.labels == label)[:16] for label in (3, 0, 1, 2)])
    np.save(tmp_path / "sorted.npy", mnist.images[rows])
    result = tmp_path / "result.json"
    ran = dmsh_export(
        "quantize",
        DEMO_CHECKPOINT,
        "--images",
        tmp_path / "sorted.npy",
        "--out",
        tmp_path / "integer",
        "--json",
        result,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(result.read_text())["centred"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_weights_that_give_no_finite_values_are_refused_by_the_layer(demo_model, mnist, value):
    broken = DMSH(demo_model.config)
    broken.load_state_dict(demo_model.state_dict())
    first = next(weight for weight in broken.parameters() if weight.ndim == 4)
    first.data.flatten()[:9] = value
    with pytest.raises(InputError, match=r"layer stages\.0\.0 of the float network: it gives values that are infinite"):
        quantise(broken, [ImageSet(mnist.images[:60], [str(row) for row in range(60)], [])])


def test_too_few_images_are_refused_with_how_many_and_why(tmp_path, mnist):
    np.save(tmp_path / "few.npy", mnist.images[: MIN_IMAGES - 1])
    ran = dmsh_export("quantize", DEMO_CHECKPOINT, "--images", tmp_path / "few.npy", "--out", tmp_path / "integer")
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "39 images are too few, give at least 40" in ran.stderr
    assert "would be clipped" in ran.stderr
    assert not (tmp_path / "integer").exists()


def test_images_of_another_size_are_refused(tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((50, 64, 64, 3), np.uint8))
    ran = dmsh_export("quantize", DEMO_CHECKPOINT, "--images", tmp_path / "wide.npy", "--out", tmp_path / "integer")
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "uint8 [N, 32, 32, 3], got uint8 [50, 64, 64, 3]" in ran.stderr


def test_an_integer_checkpoint_is_refused(done, folder, tmp_path):
    _, out = done
    ran = dmsh_export("quantize", out / "integer", "--images", folder, "--out", tmp_path / "again")
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "is a checkpoint of kind integer" in ran.stderr


def test_a_place_that_is_taken_is_refused_before_any_work(done, folder):
    _, out = done
    ran = dmsh_export("quantize", DEMO_CHECKPOINT, "--images", "nowhere", "--out", out / "integer")
    assert ran.returncode == 2
    assert "exists already" in ran.stderr


def test_the_float_checkpoint_is_not_replaced_by_what_is_made_of_it(folder, tmp_path):
    trained = shutil.copytree(DEMO_CHECKPOINT, tmp_path / "trained")
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    ran = dmsh_export("quantize", trained / "model.safetensors", "--images", folder, "--out", trained, "--overwrite")
    assert (ran.returncode, "is a float checkpoint, which cannot be made again" in ran.stderr) == (2, True)
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before
