"""A quantisation reads each image once, judges itself by every fifth, and keeps the best of what it tried."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from dmsh_export.compare.generated import generated_images
from dmsh_export.quantise import run
from dmsh_export.quantise.run import MIN_IMAGES, quantise
from dmsh_model.config import HashConfig
from dmsh_model.network import DMSH
from dmsh_serving.errors import InputError
from dmsh_serving.images.read import ImageSet

SIZE = 16
STAGES = ["choosing scales", "fitting the head to the integer trunk", "comparing codes on held-out images"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = HashConfig("vgg_small", 8, SIZE, taps=(1,), lateral_features=8, fusion_features=8)
    return DMSH(config).eval()


def batches_of(count, size=7):
    images = generated_images(count, SIZE, seed=3)
    for start in range(0, count, size):
        part = images[start : start + size]
        yield ImageSet(part, [str(start + row) for row in range(len(part))], [])


@pytest.fixture(scope="module")
def done(model):
    """What 43 images come to, the stages that were told, and the held-out images' names."""
    stages, held_out = [], []

    def code_cost(model, integer, sample):
        held_out.extend(sample.names)
        return of_codes(model, integer, sample)

    of_codes = run.code_cost
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "code_cost", code_cost)
        found = quantise(model, batches_of(43), stages.append)
    return found, stages, held_out


def test_each_stage_is_told_as_it_begins(done):
    assert done[1] == STAGES


def test_every_fifth_image_judges_and_the_others_calibrate(done):
    found, _, held_out = done
    assert sorted(map(int, held_out)) == [4, 9, 14, 19, 24, 29, 34, 39]
    assert (found.calibration_images, found.codes.images) == (35, 8)


def test_the_calibration_sees_exactly_the_images_that_do_not_judge(model, monkeypatch):
    seen = []
    add = run.Calibration.add
    monkeypatch.setattr(run.Calibration, "add", lambda self, images: seen.append(images) or add(self, images))
    quantise(model, batches_of(43))
    expected = np.delete(generated_images(43, SIZE, seed=3), np.arange(4, 43, 5), 0)
    assert np.array_equal(np.concatenate(seen), expected)


def test_what_was_chosen_is_the_best_of_what_was_tried(done):
    found = done[0]
    assert found.chosen == max(found.trials, key=lambda trial: trial.logits_signal_to_noise_db)
    assert {trial.policy for trial in found.trials if not trial.equalisation} == {"mse", "percentile", "max"}
    assert {trial.equalisation for trial in found.trials} >= {0, *run._EQUALISATIONS}
    assert [trial.corrected for trial in found.trials].count(False) == 1


def test_too_few_images_are_refused_by_their_number_and_no_stage_begins(model):
    stages = []
    with pytest.raises(InputError, match=f"^{MIN_IMAGES - 1} images are too few, give at least {MIN_IMAGES}"):
        quantise(model, batches_of(MIN_IMAGES - 1), stages.append)
    assert stages == []
    quantise(model, batches_of(MIN_IMAGES))


def test_the_record_is_json_that_has_no_infinity(done):
    found = done[0]
    layers = (dataclasses.replace(found.layers[0], signal_to_noise_db=math.inf), *found.layers[1:])
    record = dataclasses.replace(found, layers=layers, padding_signal_to_noise_db=math.inf).record()
    again = json.loads(json.dumps(record, allow_nan=False))
    assert again["padding_signal_to_noise_db"] is None
    assert again["layers"][0] == dataclasses.asdict(layers[0]) | {"signal_to_noise_db": None}
    assert again["layers"][1] == dataclasses.asdict(layers[1])
    assert again["codes"]["images"] == 8
    assert len(again["trials"]) == len(found.trials)
