"""dmsh-export trt on the command line: one line an error, the right exit code, nothing half-written."""

import json
import subprocess
import sys

import pytest

from dmsh_export.engine.tensorrt_api import find_gpu


def export(*arguments):
    command = [sys.executable, "-c", "from dmsh_export.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def one_line(answer, code):
    assert answer.returncode == code, answer.stderr
    assert answer.stderr.startswith("error: ")
    assert answer.stderr.count("\n") == 1
    return answer.stderr


def test_help_names_every_option():
    answer = export("trt", "--help")
    assert answer.returncode == 0
    for option in (
        "--fp32", "--fp16", "--bf16", "--int8", "--fp8", "--min-batch", "--opt-batch", "--max-batch", "--runtime",
        "--workspace-mib", "--optimization-level", "--timing-cache", "--version-compatible",
        "--hardware-compatibility", "--typed-onnx", "--json",
    ):  # fmt: skip
        assert option in answer.stdout


def test_a_plan_is_written_and_its_audit_shown(encoders, tmp_path):
    plan, result = tmp_path / "model.plan", tmp_path / "result.json"
    answer = export("trt", encoders.demo, "--out", plan, "--fp16", "--runtime", "tensorrt-rtx", "--json", result)
    assert answer.returncode == 0, answer.stderr
    assert "built with tensorrt-rtx" in answer.stdout
    assert "weights in fp16" in answer.stdout
    trunk = next(line for line in answer.stdout.splitlines() if "trunk" in line)
    assert "fp16" in trunk
    head = next(line for line in answer.stdout.splitlines() if "head" in line and "bool" in line)
    assert head.rstrip(" │|").endswith("-")
    assert "not audited: no GPU has compiled and loaded it here" in answer.stdout
    assert json.loads(result.read_text())["path"] == str(plan)
    shown = export("inspect", plan)
    assert shown.returncode == 0, shown.stderr
    assert "plan" in shown.stdout
    assert "tensorrt.flavour" in shown.stdout
    assert "audit.network" in shown.stdout
    assert "{" not in shown.stdout
    fp32 = export("trt", encoders.demo, "--out", plan, "--fp32", "--runtime", "tensorrt-rtx")
    assert "its codes are not proven yet: it was built where no GPU could run it" in fp32.stdout
    assert "it was built where no GPU could run it" in export("inspect", plan).stdout


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU here: auto chooses by it")
def test_auto_says_which_runtime_it_took_and_why(encoders, tmp_path):
    answer = export("trt", encoders.demo, "--out", tmp_path / "model.plan", "--fp32")
    assert "(no NVIDIA GPU is found, and RTX builds ahead of time)" in answer.stdout


@pytest.mark.parametrize(
    ("flags", "given"),
    [([], "given: none"), (["--fp16", "--int8"], "given: --fp16 and --int8")],
)
def test_exactly_one_precision_is_asked_for(flags, given, encoders, tmp_path):
    answer = export("trt", encoders.demo, "--out", tmp_path / "model.plan", *flags)
    assert given in one_line(answer, 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--int8"], 2, "--int8 takes a model with QuantizeLinear/DequantizeLinear (Q/DQ)"),
        (["--fp8"], 2, "--fp8 takes a model with QuantizeLinear/DequantizeLinear (Q/DQ)"),
        (["--fp16", "--min-batch", "9"], 2, "batch profile: --min-batch 9"),
        (["--fp16", "--opt-batch", "64"], 2, "--opt-batch 64"),
        (["--fp16", "--runtime", "dlss"], 2, "dlss"),
        (["--fp16", "--timing-cache", "cache", "--runtime", "tensorrt-rtx"], 2, "--timing-cache: TensorRT-RTX has no"),
    ],
)
def test_bad_arguments_are_one_line_and_leave_nothing(arguments, code, message, encoders, tmp_path):
    answer = export("trt", encoders.demo, "--out", tmp_path / "model.plan", *arguments)
    assert message in one_line(answer, code)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_or_gpu_is_exit_3(encoders, tmp_path):
    import importlib.util

    if importlib.util.find_spec("tensorrt") and find_gpu():
        pytest.skip("TensorRT and a GPU are both here: nothing is missing")
    answer = export("trt", encoders.demo, "--out", tmp_path / "model.plan", "--fp16", "--runtime", "tensorrt")
    assert "tensorrt" in one_line(answer, 3).lower()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_model_is_exit_2(tmp_path):
    (tmp_path / "model.onnx").write_text("hello")
    answer = export("trt", tmp_path / "model.onnx", "--out", tmp_path / "model.plan", "--fp16")
    assert "is not an ONNX model" in one_line(answer, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def test_parity_of_a_typed_graph_says_whether_the_guard_is_needed(encoders, tmp_path):
    from project import DEMO_CHECKPOINT

    typed = tmp_path / "model.fp16.onnx"
    made = export("trt", encoders.demo, "--out", tmp_path / "model.plan", "--fp16", "--typed-onnx", typed)
    assert made.returncode == 0, made.stderr
    found = tmp_path / "parity.json"
    answer = export("parity", DEMO_CHECKPOINT, typed, "--json", found)
    (target,) = json.loads(found.read_text())["targets"]
    assert answer.returncode == (1 if target["wrong_bits"] else 0), answer.stderr
    assert "is another code space than PyTorch" in answer.stdout
    said = "the guard is needed to keep" if target["bits_at_risk"] else "no guard is needed for these images"
    assert said in answer.stdout
    assert answer.stdout.count("guard is needed") == 1
