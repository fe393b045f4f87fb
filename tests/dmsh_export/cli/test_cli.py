"""dmsh-export as a person runs it: results as tables and JSON, bad input as one line and the right exit code."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import dmsh_export
from PIL import Image
from project import DEMO_CHECKPOINT

from dmsh_export.manifest import manifest_path

TOOL = Path(sys.executable).with_name("dmsh-export")


@pytest.fixture(scope="module")
def images(mnist, tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, mnist.images[:20])
    return path


@pytest.fixture(scope="module")
def model(images, tmp_path_factory):
    """An ONNX file made by the command itself."""
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    done = dmsh_export(
        "onnx", DEMO_CHECKPOINT, "--out", path, "--images", images, "--json", path.with_suffix(".result")
    )
    assert done.returncode == 0, done.stderr
    assert "wrong bits" in done.stdout
    assert "laterals and fusion into one Gemm" in done.stdout
    result = json.loads(path.with_suffix(".result").read_text())
    assert result["parity"]["targets"][0]["bits_compared"] == 20 * 64
    return path


def test_parity_of_an_exported_file_passes_with_exit_0(model, images, tmp_path):
    done = dmsh_export("parity", DEMO_CHECKPOINT, model, "--images", images, "--json", tmp_path / "out.json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["passed"] is True
    assert report["targets"][0]["wrong_bits"] == 0


def test_parity_of_a_file_with_another_weight_exits_1_and_says_how_many_bits(model, images, tmp_path):
    import onnx

    proto = onnx.load(model)
    (last,) = [tensor for tensor in proto.graph.initializer if tensor.name.endswith("head.2.bias")]
    last.raw_data = (-2 * np.frombuffer(last.raw_data, np.float32) - 3).astype(np.float32).tobytes()
    onnx.save(proto, tmp_path / "tampered.onnx")
    done = dmsh_export("parity", DEMO_CHECKPOINT, tmp_path / "tampered.onnx", "--images", images)
    assert done.returncode == 1
    assert "of 1280 bits differ from PyTorch's" in done.stderr
    assert done.stderr.count("\n") == 1


def test_latency_times_a_checkpoint_beside_its_export(model, tmp_path):
    done = dmsh_export("latency", DEMO_CHECKPOINT, model, "--rounds", 5, "--json", tmp_path / "latency.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "latency.json").read_text())["latency"]
    assert [row["target"] for row in rows] == ["PyTorch", "model.onnx"]
    assert all(row["p50_ms"] > 0 and row["rounds"] == 5 for row in rows)


def test_inspect_shows_what_was_proven(model):
    done = dmsh_export("inspect", model)
    assert done.returncode == 0, done.stderr
    assert "0 wrong of 1,280 bits" in done.stdout


@pytest.mark.parametrize("parity", [1, {}, {"passed": True, "targets": [{}]}])
def test_inspect_refuses_a_manifest_whose_parity_is_damaged(model, tmp_path, parity):
    copy = tmp_path / model.name
    copy.write_bytes(model.read_bytes())
    manifest = json.loads(manifest_path(model).read_text())
    manifest_path(copy).write_text(json.dumps(manifest | {"parity": parity}))
    done = dmsh_export("inspect", copy)
    assert done.returncode == 2
    assert "is damaged, in its parity" in done.stderr


def test_a_repository_is_written_from_the_file_alone(model, tmp_path):
    options = ["--gallery", tmp_path / "gallery", "--out", tmp_path / "repository", "--max-queue", 64, "--max-wait", 5]
    done = dmsh_export("repository", model, *options)
    assert done.returncode == 0, done.stderr
    config = (tmp_path / "repository/dmsh_ranker/config.pbtxt").read_text()
    assert "max_queue_size: 64" in config
    assert "default_timeout_microseconds: 5000000" in config
    assert (tmp_path / "repository/dmsh_encoder/1/model.onnx").read_bytes() == model.read_bytes()


def test_a_repository_is_replaced_only_if_told_to(model, tmp_path):
    write = ("repository", model, "--gallery", tmp_path / "gallery", "--out", tmp_path / "repository")
    assert "holds no gallery yet" in dmsh_export(*write).stdout
    done = dmsh_export(*write)
    assert (done.returncode, "exists already" in done.stderr) == (2, True)
    assert dmsh_export(*write, "--overwrite").returncode == 0


def test_a_repository_with_a_gallery_of_another_model_is_refused_before_it_is_written(model, tmp_path):
    from dmsh_serving import gallery

    gallery.build(tmp_path / "g", np.zeros((1, 8), np.uint8), None, None, bits=64, fingerprint="ab" * 32)
    done = dmsh_export("repository", model, "--gallery", tmp_path / "g", "--out", tmp_path / "repository")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "belongs to another model" in done.stderr
    assert not (tmp_path / "repository").exists()


def test_an_export_into_its_own_checkpoint_is_refused(tmp_path, images):
    shutil.copytree(DEMO_CHECKPOINT, tmp_path / "checkpoint")
    weights = tmp_path / "checkpoint" / "model.safetensors"
    before = weights.read_bytes()
    done = dmsh_export("onnx", tmp_path / "checkpoint", "--out", weights, "--images", images)
    assert done.returncode == 2
    assert "which it would damage" in done.stderr
    assert weights.read_bytes() == before


def test_a_model_that_is_not_its_manifests_is_not_put_into_a_repository(model, tmp_path):
    import onnx

    proto = onnx.load(model)
    proto.doc_string = "changed"
    onnx.save(proto, tmp_path / "model.onnx")
    shutil.copyfile(f"{model}.json", tmp_path / "model.onnx.json")
    done = dmsh_export("repository", tmp_path / "model.onnx", "--gallery", tmp_path / "g", "--out", tmp_path / "r")
    assert done.returncode == 2
    assert "is about another file than" in done.stderr
    assert not (tmp_path / "r").exists()


@pytest.fixture
def bad(tmp_path, model):
    """A folder of everything that can be given by mistake."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.onnx").write_text("not a model")
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "folder").mkdir()
    good = np.zeros((40, 40, 3), np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(good).save(tmp_path / "folder" / name)
    (tmp_path / "folder" / "broken.png").write_bytes((tmp_path / "folder" / "a.png").read_bytes()[:40])
    np.save(tmp_path / "wrong-size.npy", np.zeros((2, 16, 16, 3), np.uint8))
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text('{"config": {"backbone": "vgg91", "image_size": 32}}')
    return tmp_path


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("onnx missing --out m.onnx", "missing does not exist"),
        ("onnx empty --out m.onnx", "config.json is missing"),
        ("onnx text.onnx --out m.onnx", "config.json is missing"),
        ("onnx checkpoint --out m.onnx", "unknown backbone 'vgg91'; nearest names: vgg19"),
        ("onnx DEMO --out nowhere/m.onnx", "name a file in a folder that exists"),
        ("onnx DEMO --out m.onnx --images missing", "missing does not exist"),
        ("onnx DEMO --out m.onnx --images empty", "empty holds no images"),
        ("onnx DEMO --out m.onnx --images text.npy", "is not an .npy file of images"),
        (
            "onnx DEMO --out m.onnx --images wrong-size.npy",
            "images must be uint8 [N, 32, 32, 3], got uint8 [2, 16, 16, 3]",
        ),
        (
            "onnx DEMO --out m.onnx --images folder",
            "1 of 3 files cannot be read (--skip-bad leaves them out)",
        ),
        ("onnx DEMO --out m.onnx --opset 7", "opset = 7 must be 18 to"),
        ("onnx DEMO", "Missing option '--out'"),
        ("parity DEMO text.onnx", "text.onnx is not an ONNX model"),
        ("parity DEMO missing.onnx", "missing.onnx is not a file"),
        ("parity DEMO what.tflite", "a target is FILE.onnx"),
        ("parity DEMO triton://nowhere", "write a Triton target as triton://host:port/model"),
        ("parity DEMO triton://host:abc/model", "write a Triton target as triton://host:port/model"),
        ("inspect text.onnx", "text.onnx.json is missing"),
        ("inspect missing.onnx", "missing.onnx is not a file"),
        ("repository text.onnx --gallery g --out r", "text.onnx is not an ONNX model"),
        ("frobnicate", "No such command 'frobnicate'"),
    ],
)
def test_bad_input_is_one_line_on_stderr_exit_2_and_nothing_half_written(bad, command, message, monkeypatch):
    monkeypatch.chdir(bad)
    before = sorted(bad.iterdir())
    words = [str(DEMO_CHECKPOINT) if word == "DEMO" else word for word in command.split()]
    done = dmsh_export(*words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert sorted(bad.iterdir()) == before


def test_a_server_that_is_not_there_is_exit_3(model):
    done = dmsh_export("parity", DEMO_CHECKPOINT, "triton://127.0.0.1:9/dmsh_encoder")
    assert done.returncode == 3
    assert "no Triton at 127.0.0.1:9" in done.stderr
    assert done.stderr.count("\n") == 1


def test_skip_bad_leaves_the_broken_image_out_and_names_it(bad):
    done = dmsh_export("onnx", DEMO_CHECKPOINT, "--out", bad / "m.onnx", "--images", bad / "folder", "--skip-bad")
    assert done.returncode == 0, done.stderr
    assert "skipped 1 images" in done.stdout
    assert "broken.png" in done.stdout


def test_the_installed_command_does_the_same_and_debug_shows_the_traceback(tmp_path):
    command = [TOOL, "inspect", tmp_path / "missing.onnx"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    done = subprocess.run([*command, "--debug"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
