"""make gpu: without a GPU one line and exit 3; with one, a page that tells of every wrong bit."""

import dataclasses
import subprocess
import sys

import pytest
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.page import GpuReport, PlanResult, markdown
from typer.testing import CliRunner

from dmsh_export.compare.latency import latency_from_seconds
from dmsh_export.engine import tensorrt_api
from dmsh_export.engine.tensorrt_api import FlavourChoice, Gpu

FP32 = PlanResult("demo", "fp32", 640, 0, 1e-6, 90, 0, "trunk in fp32", "the known answer came out bit for bit")


def report(*plans, tests_passed=True):
    timed = {"demo": (latency_from_seconds("fp32.plan", 8, [0.002]),)}
    return GpuReport("Some GPU (8.6)", "tensorrt 11 (asked for)", plans or (FP32,), timed, "7 passed", tests_passed)


def test_the_page_names_the_gpu_and_holds_every_plan_and_speed():
    text = markdown(report(FP32, dataclasses.replace(FP32, precision="int8", worst_logit_error=0.0)))
    assert text.startswith("# TensorRT on Some GPU (8.6)\n")
    assert "| demo | FP32 | 0 of 640 | 1.0e-06 | 0 of 90 | trunk in fp32 | the known answer" in text
    assert "| demo | INT8 | 0 of 640 | 0 | 0 of 90 |" in text
    assert "| fp32.plan | 8 | 2.00 | 2.00 | 4,000 |" in text
    assert "7 passed" in text


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"wrong_bits": 1}, "demo fp32: 1 of 640 bits are wrong"),
        ({"precision": "int8", "wrong_bits": 2}, "demo int8: 2 of 640"),
        ({"precision": "fp16", "changed_codes": 3}, "3 of 90 codes change with the batch"),
    ],
)
def test_a_wrong_bit_or_a_code_that_a_batch_changes_is_a_failure(changes, failure):
    (line,) = report(dataclasses.replace(FP32, **changes)).failures()
    assert failure in line


def test_wrong_bits_of_fp16_are_measured_and_no_failure():
    assert report(dataclasses.replace(FP32, precision="fp16", wrong_bits=5)).failures() == []


def test_a_failed_test_is_a_failure():
    assert report(tests_passed=False).failures() == ["the tests that need a GPU: 7 passed"]


@pytest.mark.skipif(tensorrt_api.find_gpu() is not None, reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line_and_exits_with_3(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--page", tmp_path / "gpu.md"], capture_output=True, text=True
    )
    assert done.returncode == 3
    assert done.stderr == (
        "error: no NVIDIA GPU (or no driver) is found here: run make gpu on the machine whose plans are to be shown\n"
    )
    assert not (tmp_path / "gpu.md").exists()


def test_a_failure_leaves_the_page_that_shows_it_and_exits_with_1(tmp_path, monkeypatch):
    found = Gpu("Some GPU", "8.6")
    monkeypatch.setattr(tensorrt_api, "find_gpu", lambda: found)
    monkeypatch.setattr(tensorrt_api, "choose_flavour", lambda _: FlavourChoice("tensorrt", "asked for", found))
    monkeypatch.setattr(gpu, "measured", lambda *_: report(dataclasses.replace(FP32, wrong_bits=1)))
    done = CliRunner().invoke(gpu.app, ["--page", str(tmp_path / "gpu.md")])
    assert done.exit_code == 1
    assert "1 of 640 bits are wrong" in str(done.exception)
    assert "| demo | FP32 | 1 of 640 |" in (tmp_path / "gpu.md").read_text()
