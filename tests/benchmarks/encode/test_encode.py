"""The benchmark of the encoders: its networks, its counts, its tables. Timed on the demo's network alone."""

import dataclasses
import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from benchmarks.common.networks import fit_statistics, photograph_crops
from benchmarks.encode import __main__ as encode
from benchmarks.encode import page as encode_page
from benchmarks.encode.contenders import EAGER, Contender
from benchmarks.encode.files import FLOAT, INTEGER, INTEGER_OPENVINO, OPENVINO_INT8, STATIC_INT8
from benchmarks.encode.peak import operations_per_image, peak_operations_per_second
from benchmarks.encode.timing import Row, Setting, Wrong, seconds_in_turns, settings, wrong_of
from torch import nn

from dmsh_model.config import HashConfig
from dmsh_model.network import DMSH
from dmsh_serving.encoder.openvino import why_not_here
from dmsh_serving.errors import CheckError, InputError

LOGITS = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)


def contender(run=None, reference="integer", name=INTEGER):
    return Contender(name, reference, "int8", run or (lambda images: LOGITS), "AMX")


def bench(wrong_bits=0):
    speeds = {EAGER: 10.0, FLOAT: 20.0, INTEGER: 60.0, INTEGER_OPENVINO: 90.0} | dict.fromkeys(STATIC_INT8, 50.0)
    speeds |= dict.fromkeys(OPENVINO_INT8, 100.0)
    rows = [Row("demo", name, 4, 2, speed, speed / 2, 3, speed / 100, "AMX") for name, speed in speeds.items()]
    ours = (INTEGER, INTEGER_OPENVINO)
    wrong = [
        Wrong("demo", name, "integer" if name in ours else "float", 640, wrong_bits, wrong_bits) for name in speeds
    ]
    peaks = (encode.Peak("int8", 2, 1e12),)
    return encode.EncodeBench(
        "a CPU", {"torch": "2"}, peaks, tuple(rows), tuple(wrong), ("demo by torch.compile (no gcc)",)
    )


def test_wrong_bits_and_different_logits_are_counted_apart():
    found = LOGITS.copy()
    found[0, 0], found[1, 1] = -1, 3.5
    assert wrong_of("demo", contender(), LOGITS, found) == Wrong("demo", INTEGER, "integer", 4, 1, 2)
    assert wrong_of("demo", contender(), LOGITS, LOGITS).different_logits == 0


def test_one_different_integer_logit_fails_the_benchmark_a_float_one_does_not():
    wrong = Wrong("demo", INTEGER, "integer", 640, 0, 1)
    with pytest.raises(CheckError, match="demo, integer network: 0 bits and 1 logits of 640"):
        encode.check((wrong,))
    encode.check((dataclasses.replace(wrong, reference="float"),))


def test_contenders_take_turns_and_every_round_is_timed():
    calls = []

    def slow(name):  # enough to be called once a round
        calls.append(name)
        time.sleep(0.03)

    ready = [contender(lambda images, name=name: slow(name)) for name in "ab"]
    seconds = seconds_in_turns(ready, np.zeros((2, 4, 4, 3), np.uint8), 2, 3)
    assert calls == [*"ab", *"ababab"]
    assert [len(found) for found in seconds] == [3, 3]
    assert min(map(min, seconds)) >= 0.03


def test_a_batch_larger_than_the_images_is_filled_with_them_again():
    seen = []
    seconds_in_turns([contender(seen.append)], np.zeros((3, 4, 4, 3), np.uint8), 8, 1)
    assert {len(block) for block in seen} == {8}


def test_one_thread_is_timed_at_the_first_batch_only():
    chosen = settings([1, 4])
    assert chosen[0] == Setting(1, 1)
    assert sum(setting.threads == 1 for setting in chosen) in (1, 2)  # 2 on a machine with one core
    assert {setting.batch for setting in chosen} == {1, 4}


def test_seeded_networks_have_live_branches_and_balanced_bits():
    images = photograph_crops(8, 32)
    torch.manual_seed(0)
    model = DMSH(HashConfig("vgg_small", 32, 32))
    fit_statistics(model, images)
    shares = (model.logits(images) > 0).mean(axis=0)
    assert 0.4 <= shares.min() <= shares.max() <= 0.6
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(bool((norm.weight > 0.1).all()) for norm in norms)
    assert all(float(norm.running_var.min()) != 1 for norm in norms)


def test_crops_are_the_same_every_time_and_differ_from_each_other():
    crops = photograph_crops(6, 24)
    assert np.array_equal(crops, photograph_crops(6, 24))
    assert len({crop.tobytes() for crop in crops}) == 6
    assert crops.std(axis=(1, 2, 3)).min() > 5


def test_operations_are_two_for_each_weight_at_each_place():
    import integer_networks

    network = integer_networks.network()
    places = {"stem": network.shapes[1][1:], "wide": network.shapes[6][1:]}
    by_hand = 2 * (8 * 3 * 9 * np.prod(places["stem"]) + 4 * 8 * 1 * np.prod(places["wide"]))
    others = [layer for layer in network.layers if hasattr(layer, "weight") and layer.name not in places]
    by_hand += sum(
        2 * layer.weight.size * int(np.prod(network.shapes[network.layers.index(layer)][1:])) for layer in others
    )
    assert operations_per_image(network) == by_hand


def test_the_peak_of_int8_is_a_plausible_number():
    assert 1e9 < peak_operations_per_second("int8", 1) < 1e14


def test_the_table_holds_speeds_ratios_wrong_bits_and_what_was_left_out():
    text = encode_page.markdown(bench())
    assert "| integer network | 60.0 (60%) | 0 of 640 | 0 | AMX |" in text
    assert "| fastest integer network / PyTorch eager | **9.00x** |" in text
    assert "| fastest integer network / ONNX Runtime's inexact INT8 | **1.80x** |" in text
    assert "| fastest integer network / the fastest inexact INT8 | **0.90x** |" in text
    assert "Not timed: demo by torch.compile (no gcc)." in text


def test_a_kind_of_cpu_keeps_its_tables_when_another_is_measured(monkeypatch):
    kinds = {"AMX": "encode-amx", "AVX-512 with VNNI": "encode-vnni", "ARM64": "encode-other"}
    for kind, marker in kinds.items():
        monkeypatch.setattr("dmsh_export.compare.machine.instructions", lambda arithmetic, kind=kind: kind)
        assert encode.marker() == marker


def test_nothing_of_openvino_is_needed_for_a_table():
    measured = bench()
    left = tuple(row for row in measured.rows if "OpenVINO" not in row.contender)
    text = encode_page.markdown(dataclasses.replace(measured, rows=left))
    assert "| fastest integer network / the fastest inexact INT8 | **1.20x** |" in text


def test_a_page_that_cannot_be_written_to_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "measured", lambda *_, **__: pytest.fail("measured first"))
    with pytest.raises(InputError, match="is not there"):
        encode.encode(page=tmp_path / "page.md")


def test_the_plot_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    encode_page.plot(tmp_path / "img" / "encode.png", bench(wrong_bits=3))
    assert (tmp_path / "img" / "encode.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.program
def test_the_program_times_the_demos_network_and_finds_the_integers_exact(tmp_path):
    json_file = tmp_path / "result.json"
    options = ["--quick", "--networks", "demo", "--batch", "1", "--rounds", "1", "--no-compile", "--json", json_file]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.encode", *map(str, options)], capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(json_file.read_text())
    exact = [entry for entry in result["wrong"] if entry["reference"] == "integer"]
    served = [INTEGER, *([INTEGER_OPENVINO] if why_not_here(integer=True) is None else [])]
    assert {entry["contender"] for entry in exact} >= set(served)
    assert {(entry["wrong_bits"], entry["different_logits"]) for entry in exact} == {(0, 0)}
    assert {row["contender"] for row in result["rows"]} > {EAGER, FLOAT, *served}
    assert result["left_out"] == []


def test_an_unknown_network_is_one_line_and_exit_2():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.encode", "--networks", "lenet"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: no network lenet to time, there are demo, resnet18, resnet50, efficientnet_lite0, vgg19\n"
    )
