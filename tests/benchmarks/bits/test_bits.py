"""The ten million bits: every image counts once, every size comes filled and not, and one changed value is found."""

import json
import subprocess
import sys

import numpy as np
import pytest
from benchmarks.bits import __main__ as bits

from dmsh_serving import cpu as cpu_features
from dmsh_serving.codes import Encoded, pack
from dmsh_serving.encoder import openvino
from dmsh_serving.errors import CheckError

LOGITS = np.random.default_rng(0).normal(size=(700, 12)).astype(np.float32)
NUMBERED = np.arange(700, dtype=np.int32).view(np.uint8).reshape(700, 1, 1, 4)[..., :3].copy()


def encoder(logits):
    """Return an encoder that knows its images by number."""

    def infer(images):
        numbers = images[:, 0, 0, 0].astype(int) + 256 * images[:, 0, 0, 1].astype(int)
        return Encoded(pack(logits[numbers]), logits[numbers])

    return infer


@pytest.mark.parametrize("images", [1, 40, 561, 2000])
def test_every_image_counts_once_in_order(images):
    counted = np.concatenate([rows[:count] for rows, count in bits.batches(images)])
    assert np.array_equal(counted, np.arange(images))


def test_two_cycles_hold_every_size_filled_up_and_not():
    found = [(len(rows), count) for rows, count in bits.batches(2 * 561)]
    assert found[:33] == [(size, size) for size in range(1, 34)]
    assert found[33:] == [(33, size) for size in range(1, 34)]


def test_equal_logits_give_no_difference():
    found = bits.compared("here", "numbers", encoder(LOGITS), NUMBERED, LOGITS)
    assert (found.bits, found.wrong_bits, found.different_logits) == (8400, 0, 0)
    bits.check([found])


def test_one_flipped_bit_and_one_moved_logit_are_found_and_fail():
    changed = LOGITS.copy()
    changed[650, 3] *= -1
    changed[699, 0] = np.nextafter(changed[699, 0], np.float32(9))
    found = bits.compared("here", "numbers", encoder(changed), NUMBERED, LOGITS)
    assert (found.wrong_bits, found.different_logits) == (1, 2)
    with pytest.raises(CheckError, match="here, numbers: 1 bits and 2 logits of 8,400"):
        bits.check([found])


def test_without_vnni_only_what_the_precision_pass_makes_exact_is_compared(monkeypatch):
    monkeypatch.setattr(cpu_features, "has_vnni", lambda: True)
    monkeypatch.setattr(openvino, "why_not_here", lambda *, integer: None)
    assert len(bits.settings()) == 16 + 3
    monkeypatch.setattr(openvino, "why_not_here", lambda *, integer: "no VNNI")
    assert len(bits.settings()) == 16
    monkeypatch.setattr(cpu_features, "has_vnni", lambda: False)
    left_out = {"basic", "disabled"}
    exact = bits.settings()
    assert len(exact) == 12
    assert not [one for one in exact if one.dialect == "onnxruntime" and one.optimisation in left_out]


@pytest.mark.live
@pytest.mark.program
def test_the_quick_program_finds_no_difference_in_any_setting_nor_in_triton(tmp_path):
    result = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bits", "--quick", "--json", result],
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text())
    assert (found["wrong_bits"], found["different_logits"]) == (0, 0)
    assert found["bits"] == sum(row["bits"] for row in found["settings"]) > 400_000
    runtimes = 2 if openvino.why_not_here(integer=True) is None else 1
    assert sum("Triton" in row["setting"] for row in found["settings"]) == 2 * runtimes
