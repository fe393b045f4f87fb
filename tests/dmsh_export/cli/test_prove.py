"""Integer checkpoints on the command line: export, prove, compile; one line an error, nothing half-written."""

import json
import subprocess
import sys
from pathlib import Path

import integer_networks as networks
import numpy as np
import onnx
import pytest
import tiny_model
from onnx import numpy_helper
from project import DEMO_CHECKPOINT

from dmsh_export.manifest import read_manifest
from dmsh_export.to_onnx.integer import export_integer_onnx
from dmsh_model.integer import checkpoint as integer_checkpoint
from dmsh_serving.contract import Metadata
from dmsh_serving.encoder.onnxruntime import OnnxEncoder


def export(*arguments):
    command = [sys.executable, "-c", "from dmsh_export.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def one_line(answer, code):
    assert answer.returncode == code, answer.stderr
    assert answer.stderr.startswith("error: ")
    assert answer.stderr.count("\n") == 1
    return answer.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An integer checkpoint and its two exports: ``checkpoint``, ``onnxruntime.onnx``, ``tensorrt.onnx``."""
    folder = tmp_path_factory.mktemp("integer")
    model = networks.model()
    integer_checkpoint.save(model, folder / "checkpoint", parent="ab" * 32)
    for dialect in ("onnxruntime", "tensorrt"):
        export_integer_onnx(model, folder / f"{dialect}.onnx", networks.images(8), dialect=dialect, max_batch=2)
    return folder


def tampered(source: Path, out: Path) -> Path:
    """Write ``source`` with one weight changed, and no manifest."""
    model = onnx.load(source)
    tensor = next(found for found in model.graph.initializer if found.name == "2_depthwise.weight")
    weight = numpy_helper.to_array(tensor).copy()
    weight.flat[3] ^= 1
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    onnx.save(model, out)
    return out


def test_an_integer_checkpoint_is_exported_with_its_certificate(folder, tmp_path):
    out, result = tmp_path / "model.onnx", tmp_path / "result.json"
    np.save(tmp_path / "images.npy", networks.images(40))
    answer = export("onnx", folder / "checkpoint", "--out", out, "--images", tmp_path / "images.npy", "--json", result)
    assert answer.returncode == 0, answer.stderr
    assert "proven: its integers are those of the checkpoint" in answer.stdout
    said, manifest = json.loads(result.read_text()), read_manifest(out)
    assert said["certificate"]["dialect"] == manifest["options"]["dialect"] == "onnxruntime"
    assert manifest["certificate"]["proven"] is True
    assert manifest["certificate"]["sha256"] == manifest["sha256"]
    assert said["parity"]["targets"][0]["worst_logit_error"] == 0
    with OnnxEncoder(out) as encoder:
        assert encoder.fingerprint == networks.model().fingerprint


def test_prove_writes_the_certificate_of_either_dialect(folder, tmp_path):
    for dialect in ("onnxruntime", "tensorrt"):
        result = tmp_path / f"{dialect}.json"
        answer = export("prove", folder / f"{dialect}.onnx", "--against", folder / "checkpoint", "--json", result)
        assert answer.returncode == 0, answer.stderr
        assert json.loads(result.read_text())["dialect"] == dialect


def test_a_tampered_model_fails_the_proof_and_is_not_compiled(folder, tmp_path):
    model = tampered(folder / "tensorrt.onnx", tmp_path / "model.onnx")
    message = one_line(export("prove", model, "--against", folder / "checkpoint"), 1)
    assert "node 2_depthwise: 1 of 72 values of its weight" in message
    plan = tmp_path / "model.plan"
    message = one_line(export("trt", model, "--int8", "--out", plan, "--runtime", "tensorrt-rtx"), 1)
    assert "changed after its export" in message
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_what_is_no_case_for_a_proof_is_refused_in_one_line(folder, tmp_path):
    assert "float model" in one_line(export("prove", tiny_model.write(tmp_path / "float.onnx")), 2)
    answer = export("prove", folder / "tensorrt.onnx", "--against", DEMO_CHECKPOINT)
    assert "is a float checkpoint" in one_line(answer, 2)


def test_options_of_the_other_kind_of_checkpoint_are_refused(folder, tmp_path):
    out = tmp_path / "model.onnx"
    answer = export("onnx", folder / "checkpoint", "--out", out, "--no-fold")
    assert "--no-fold is for float checkpoints" in one_line(answer, 2)
    answer = export("onnx", DEMO_CHECKPOINT, "--out", out, "--dialect", "tensorrt")
    assert "--dialect is for integer checkpoints" in one_line(answer, 2)
    assert not list(tmp_path.iterdir())


def test_the_tensorrt_dialect_compiles_and_keeps_its_code_space(folder, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx is not installed")
    plan = tmp_path / "model.plan"
    answer = export("trt", folder / "tensorrt.onnx", "--int8", "--out", plan, "--runtime", "tensorrt-rtx")
    assert answer.returncode == 0, answer.stderr
    manifest = read_manifest(plan)
    assert manifest["fingerprint"] == networks.model().fingerprint
    assert manifest["parent_fingerprint"] is None
    assert manifest["certificate"]["proven"] is True


def test_tensorrt_takes_an_integer_model_in_its_own_dialect_and_int8_alone(folder, tmp_path):
    for model, precision in (("onnxruntime", "--int8"), ("tensorrt", "--fp16")):
        answer = export(
            "trt", folder / f"{model}.onnx", precision, "--out", tmp_path / "p", "--runtime", "tensorrt-rtx"
        )
        assert "--dialect tensorrt" in one_line(answer, 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({}, "names no dialect: export it again"),
        ({Metadata.PARENT_FINGERPRINT: "ab" * 32}, "changed after it was made"),
    ],
)
def test_an_integer_model_whose_dialect_was_taken_away_does_not_become_a_plan_without_a_proof(
    added, message, folder, tmp_path
):
    model = onnx.load(folder / "tensorrt.onnx")
    (said,) = [prop for prop in model.metadata_props if prop.key == Metadata.DIALECT]
    model.metadata_props.remove(said)
    for key, value in added.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, tmp_path / "model.onnx")
    answer = export("trt", tmp_path / "model.onnx", "--int8", "--out", tmp_path / "p", "--runtime", "tensorrt-rtx")
    assert message in one_line(answer, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
