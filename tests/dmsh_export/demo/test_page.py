"""The page shows the figures it is given, as text, and needs nothing but itself."""

import re

import numpy as np
import pytest

from dmsh_export.compare.latency import latency_from_seconds
from dmsh_export.compare.parity import BatchInvariance, ParityReport, TargetParity
from dmsh_export.demo.machines import MachineResult
from dmsh_export.demo.page import DemoPage, Neighbours, step_name, write_page
from dmsh_export.prove.bound_rows import LayerBound
from dmsh_export.prove.certificate import Certificate

RANDOM = np.random.default_rng(0)


def target(name, wrong_bits=0):
    return TargetParity(
        target=name, fingerprint="f" * 64, images=1234, bits_compared=100_000, wrong_bits=wrong_bits, images_touched=0,
        worst_logit_error=1e-6, smallest_margin=1e-3, bits_at_risk=0, wrong_bit_rate_upper_95=1e-4,
        invariance=BatchInvariance(32, (), 1088, 7),
    )  # fmt: skip


CERTIFICATE = Certificate(
    model="model.onnx", sha256="0" * 64, dialect="onnxruntime", fingerprint="f" * 64, network_hash="e" * 64,
    checkpoint=None, bounds=(LayerBound("conv<i>0", "Convolution", -5, 7, 2**22, (1, 3), 0, 127),), conditions=(),
)  # fmt: skip


def neighbours(count):
    images = RANDOM.integers(0, 256, (count + 1, 8, 8, 3), dtype=np.uint8)
    return Neighbours(images[0], images[1:], np.arange(count, dtype=np.int32), np.arange(count) % 3 > 0)


@pytest.fixture
def page():
    seconds = (0.002,) * 99 + (0.004,)
    return DemoPage(
        fingerprint="<i>ab</i>" + "f" * 55,
        parity=(ParityReport("PyTorch", "f" * 64, (target("float.onnx"), target("triton://h:1/<script>", 3))),),
        certificate=CERTIFICATE,
        plan="built by <i>nobody</i>",
        machines=(MachineResult("a <i>CPU</i>", "c" * 64, 4321, 2), MachineResult("another", "d" * 64, 1000, 0)),
        figures={
            "map_last_stage": 0.4,
            "map_float": 0.5,
            "map_integer": 0.25,
            "map_triton": 0.25,
            "equal_bits": 0.97531,
            "equal_codes": 0.8,
        },
        speeds=(latency_from_seconds("model.onnx", 32, (0.016,)),),
        latency=latency_from_seconds("Triton", 1, seconds),
        seconds=seconds,
        margins=RANDOM.uniform(0.01, 1, 500).astype(np.float32),
        worst_error=1e-6,
        queries=(neighbours(6), neighbours(6)),
    )


@pytest.fixture
def text(page, tmp_path):
    write_page(tmp_path / "report.html", page)
    return (tmp_path / "report.html").read_text()


def test_the_cards_sum_over_all_targets(text):
    cards = re.findall(r'<div class="card"><b>(.*?)</b>', text)
    assert cards == ["200,000", "3", "25.0", "2.0 ms"]


@pytest.fixture
def tables(text):
    """The rows of every table below its head, as lists of cells."""
    return [
        [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)[1:]]
        for table in re.findall(r"<table>(.*?)</table>", text, re.DOTALL)
    ]


def test_the_parity_table_has_a_row_for_each_target(tables):
    assert tables[1] == [
        ["float: ONNX, folded", "1,234", "100,000", "0", "1.0e-06", "1,088", "7"],
        ["integer: Triton, over gRPC", "1,234", "100,000", "3", "1.0e-06", "1,088", "7"],
    ]


def test_bounds_machines_costs_and_speeds_are_those_given(tables, text):
    assert tables[0] == [["the last stage alone", "0.4000"], ["three scales, fused", "0.5000"]]
    assert tables[2:] == [
        [["conv&lt;i&gt;0", "Convolution", "4,194,304", "25.0%"]],
        [["a &lt;i&gt;CPU&lt;/i&gt;", "c" * 12, "4,321", "2"], ["another", "d" * 12, "1,000", "0"]],
        [
            ["float codes, PyTorch", "0.500000"],
            ["integer codes, PyTorch", "0.250000"],
            ["integer codes, Triton", "0.250000"],
        ],
        [["integer, ONNX Runtime", "32", "16.00", "2,000"]],
    ]
    assert "97.531% of the bits" in text
    assert "built by &lt;i&gt;nobody" in text
    assert "make test-cpus" not in text


def test_every_neighbour_is_shown_and_marked_as_of_the_querys_class_or_not(text):
    assert (text.count('<figure class="query">'), text.count('<figure class="same">')) == (2, 8)
    assert text.count('<figure class="other">') == 4
    assert text.count("data:image/webp;base64,") == 14


def test_no_text_that_comes_from_outside_becomes_markup(text):
    assert "<i>" not in text
    assert "&lt;i&gt;ab&lt;/i&gt;fffffff" in text
    assert "<script" not in text


def test_the_page_loads_nothing_from_elsewhere(text):
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "url(http" not in text


def test_a_targets_name_is_what_it_is_to_a_reader():
    names = [step_name(target(name)) for name in ("float.onnx", "integer-tensorrt.onnx", "triton://h:1/m")]
    assert names == ["float: ONNX, folded", "integer: TensorRT's dialect", "integer: Triton, over gRPC"]
