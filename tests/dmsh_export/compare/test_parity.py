"""Parity counts every wrong bit, in every slot of every batch size, and passes nothing else."""

import dataclasses

import numpy as np
import pytest
import tiny_model
from hypothesis import given
from hypothesis import strategies as st

from dmsh_export.compare.parity import batches_of_every_size, compare, upper_bound_95
from dmsh_export.compare.runners import OnnxRunner
from dmsh_serving.codes import Encoded, pack
from dmsh_serving.errors import InputError
from dmsh_serving.images.framing import Framing

BITS, SIZE = 12, 4
PAD = {"framing": str(Framing(crop="pad"))}


class Fake:
    """A runner whose logits are a fixed function of the image; ``change`` may spoil a batch's logits."""

    def __init__(self, name="fake", change=lambda logits, images: None, **space):
        self.name, self.change = name, change
        self.bits, self.image_size, self.fingerprint = BITS, SIZE, "f" * 64
        self.parent_fingerprint, self.framing, self.is_exact = None, None, False
        vars(self).update(space)
        self.open = False

    def __enter__(self):
        self.open = True
        return self

    def __exit__(self, *_):
        self.open = False

    def infer(self, images):
        assert self.open
        weight = np.random.default_rng(0).normal(size=(SIZE * SIZE * 3, BITS))
        logits = ((images.reshape(len(images), -1) - 127.5) @ weight).astype(np.float32)
        self.change(logits, images)
        return Encoded(pack(np.nan_to_num(logits)), logits)


def images(count=40):
    return np.random.default_rng(1).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def only_target(target, **options):
    report = compare(Fake("reference"), [target], images(), **options)
    return report, report.targets[0]


def test_the_same_function_has_no_wrong_bit_and_passes():
    report, target = only_target(Fake())
    assert report.passed
    assert report.summary() == "0 wrong bits of 480"
    assert (target.images, target.bits_compared, target.wrong_bits, target.images_touched) == (40, 480, 0, 0)
    assert target.worst_logit_error == 0
    assert target.bits_at_risk == 0
    assert target.smallest_margin > 0


def test_one_flipped_bit_of_one_image_is_counted_and_fails():
    flipped = images()[17]

    def flip(logits, batch):
        row = (batch == flipped).all(axis=(1, 2, 3))
        logits[row, 5] *= -1

    report, target = only_target(Fake(change=flip))
    assert not report.passed
    assert (target.wrong_bits, target.images_touched) == (1, 1)
    assert "fake: 1 of 480 bits differ from reference's (1 of 40 images)" in report.summary()


def test_an_image_whose_code_is_wrong_in_every_batch_is_no_code_that_changes_with_the_batch():
    wrong = images()[0]

    def flip(logits, batch):
        logits[(batch == wrong).all(axis=(1, 2, 3)), 5] *= -1

    report, target = only_target(Fake(change=flip))
    assert (target.wrong_bits, target.invariance.wrong_codes) == (1, 0)
    assert not report.passed


def test_codes_that_only_a_lone_image_gets_wrong_are_codes_that_change_with_the_batch():
    def spoil(logits, _):
        if len(logits) == 1:
            logits *= -1

    report, target = only_target(Fake(change=spoil), max_batch=6)
    assert target.wrong_bits == 0
    assert target.invariance.wrong_codes == 6 + 2 * (2 + 3 + 4 + 5 + 6) + 16 + 32  # all but the batches of one
    assert not report.passed


def test_codes_that_all_small_batches_get_wrong_alike_are_codes_that_change_with_the_batch():
    def spoil(logits, _):
        if len(logits) <= 6:
            logits *= -1

    report, target = only_target(Fake(change=spoil), max_batch=6)
    assert (target.wrong_bits, target.invariance.wrong_codes) == (0, 6 + 16 + 32)
    assert not report.passed


def test_an_error_that_flips_no_bit_passes_and_is_reported_with_the_bits_at_risk():
    margins = np.sort(np.abs(Fake().__enter__().infer(images()).logits).ravel())
    error = np.float32(margins[2] * 1.5)

    def push_away(logits, _):
        logits += np.where(logits > 0, error, -error)

    report, target = only_target(Fake(change=push_away))
    assert report.passed
    assert target.worst_logit_error == pytest.approx(error, rel=1e-3)
    assert target.bits_at_risk == int((margins <= target.worst_logit_error).sum()) >= 3
    assert target.smallest_margin == pytest.approx(margins[0])


def test_of_an_integer_network_the_logits_too_must_be_equal_but_not_those_of_a_code_space_of_its_own():
    def off_by_little(logits, batch):
        logits += np.copysign(np.float32(2**-10), logits)

    reference = Fake("reference", is_exact=True)
    assert compare(reference, [Fake()], images()).passed
    report = compare(reference, [Fake(change=off_by_little)], images())
    assert (report.passed, report.targets[0].wrong_bits) == (False, 0)
    assert "worst logit error 9.8e-04, in an integer network there is none" in report.summary()
    approximate = Fake(change=off_by_little, fingerprint="e" * 64, parent_fingerprint="f" * 64)
    assert compare(reference, [approximate], images()).passed


def test_without_an_error_no_bit_is_at_risk_even_if_a_logit_is_exactly_0():
    def on_the_threshold(logits, _):
        logits[:, 0] = 0

    report = compare(Fake("reference", change=on_the_threshold), [Fake(change=on_the_threshold)], images())
    assert report.passed
    assert (report.targets[0].smallest_margin, report.targets[0].bits_at_risk) == (0, 0)


@pytest.mark.parametrize("slot", [0, 1, 4])
def test_a_target_that_is_wrong_in_one_slot_of_one_batch_size_fails(slot):
    def spoil(logits, _):
        if len(logits) == 5:
            logits[slot] *= -1

    report, target = only_target(Fake(change=spoil), max_batch=6)
    assert target.wrong_bits == 0
    assert target.invariance.wrong_codes == 2  # once among equal images, once among others
    assert not report.passed


@pytest.mark.parametrize("size", [16, 32])
def test_a_target_that_is_wrong_in_one_slot_of_one_large_batch_fails(size):
    def spoil(logits, _):
        if len(logits) == size:
            logits[-1] *= -1

    report, target = only_target(Fake(change=spoil), max_batch=8)
    assert (target.wrong_bits, target.invariance.wrong_codes) == (0, 1)
    assert target.invariance.sizes == "1 to 8, 16, 32"
    assert not report.passed


def test_every_batch_size_is_filled_with_the_one_same_image_and_with_all():
    batches = [list(rows) for rows in batches_of_every_size(3, 4)]
    assert batches == [[0], [1], [0, 0], [2, 0], [0, 0, 0], [0, 1, 2], [0, 0, 0, 0], [1, 2, 0, 1]]


def test_logits_that_are_no_numbers_are_an_error_never_a_code():
    def spoil(logits, _):
        logits[0, 0] = np.nan

    with pytest.raises(InputError, match="NaN or Inf"):
        only_target(Fake(change=spoil))


@pytest.mark.parametrize(("what", "value"), [("fingerprint", "0" * 64), ("bits", 16), ("image_size", 8)])
def test_another_code_space_is_refused_before_anything_is_compared(what, value):
    with pytest.raises(InputError, match=f"{what} {value} is not"):
        only_target(Fake(**{what: value}))


def test_a_file_for_pictures_that_are_framed_otherwise_is_refused(tmp_path):
    made, torn = (tiny_model.write(tmp_path / name, **said) for name, said in (("a.onnx", {}), ("b.onnx", PAD)))
    assert compare(OnnxRunner(made), [OnnxRunner(made)], tiny_model.random_images(4)).passed
    with pytest.raises(InputError, match=r"b\.onnx has pictures framed as pad .*, a\.onnx as centre"):
        compare(OnnxRunner(made), [OnnxRunner(torn)], tiny_model.random_images(4))


def test_no_images_is_an_error_not_a_pass():
    with pytest.raises(InputError, match="give at least one"):
        compare(Fake(), [Fake()], images(0))


def test_every_runner_is_closed_also_after_an_error():
    reference, target = Fake(), Fake(change=lambda logits, _: logits.fill(np.inf))
    with pytest.raises(InputError):
        compare(reference, [target], images())
    assert not reference.open
    assert not target.open


def test_a_report_is_plain_json():
    report, _ = only_target(Fake())
    plain = report.to_dict()
    assert plain["passed"] is True
    assert plain["targets"][0]["invariance"] == dataclasses.asdict(report.targets[0].invariance)


def test_progress_counts_up_to_all_images():
    seen = []
    compare(Fake(), [Fake()], images(1300), on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(512, 1300), (1024, 1300), (1300, 1300)]


@given(st.integers(0, 40), st.integers(1, 10_000))
def test_the_upper_bound_leaves_five_percent_of_a_binomial_below(wrong, compared):
    from scipy.stats import binom

    wrong = min(wrong, compared)
    bound = upper_bound_95(wrong, compared)
    assert wrong / compared <= bound <= 1
    if wrong < compared:
        assert binom.cdf(wrong, compared, bound) == pytest.approx(0.05, rel=1e-6)
