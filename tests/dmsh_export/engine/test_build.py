"""Plans built by the real TensorRT-RTX builder: what is written, what is refused, and that nothing is left behind."""

import hashlib
import json
import resource
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest

from dmsh_export.engine import (
    build as engine,
)
from dmsh_export.engine import (
    process as engine_process,
)
from dmsh_export.engine import (
    runner as trt_runner,
)
from dmsh_export.engine import (
    tensorrt_api,
)
from dmsh_export.engine import (
    worker as engine_worker,
)
from dmsh_export.engine.build import BatchProfile, EngineOptions, engine_from_onnx
from dmsh_export.engine.exchange import BuildResult
from dmsh_export.engine.manifest import read_plan_manifest
from dmsh_export.engine.proof import record_parity
from dmsh_export.engine.tensorrt_api import FlavourChoice, Gpu, choose_flavour, find_gpu
from dmsh_export.graph import metadata_of
from dmsh_export.manifest import manifest_path, read_manifest
from dmsh_export.seal import sealed
from dmsh_serving.codes import Encoded
from dmsh_serving.encoder.onnxruntime import OnnxEncoder
from dmsh_serving.errors import CheckError, InputError, MissingError
from dmsh_serving.files import sha256_of_file

H100 = Gpu("H100", "9.0")


def rtx(precision, **options):
    return EngineOptions(precision, runtime="tensorrt-rtx", **options)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *(("demo", precision) for precision in ("fp32", "fp16", "bf16", "int8", "fp8")),
        *((name, precision) for name in ("resnet50", "vgg19") for precision in ("fp32", "fp16", "int8")),
    ],
)
def test_a_plan_is_built_with_a_dynamic_batch_and_says_what_it_is(encoders, name, precision, tmp_path):
    source, out = encoders.named(name, precision), tmp_path / "model.plan"
    phases = []
    build = engine_from_onnx(
        source, out, rtx(precision, profile=BatchProfile(1, 4, 16)), on_progress=lambda *step: phases.append(step)
    )
    manifest = read_manifest(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.plan", "model.plan.json"]
    assert manifest["kind"] == "plan"
    assert manifest["made_from"] == {source.name: sha256_of_file(source)}
    assert manifest["profile"] == {"min": 1, "opt": 4, "max": 16}
    assert manifest["tensorrt"]["flavour"] == "tensorrt-rtx"
    assert manifest["fingerprint"] == build.fingerprint
    theirs = metadata_of(onnx.load(source))["dmsh.fingerprint"]
    assert manifest["parent_fingerprint"] == (None if precision == "fp32" else theirs)
    assert (manifest["fingerprint"] == theirs) == (precision == "fp32")
    products = {(row["part"], row["type"]): row["products"] for row in manifest["audit"]["network"] if row["products"]}
    convolutions = {"demo": 8, "resnet50": 53, "vgg19": 16}[name]
    assert products == {("trunk", precision): convolutions, ("head", "fp32"): 3}
    assert any(done == total for _, done, total in phases)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_two_builds_of_one_model_give_the_same_bytes(encoders, precision, tmp_path, monkeypatch):
    source = encoders.named("demo", precision)
    plans = [tmp_path / "a.plan", tmp_path / ("far" * 20) / ("long" * 9 + ".plan")]
    plans[1].parent.mkdir()
    for plan in plans:
        build = engine_from_onnx(source, plan, rtx(precision))
        monkeypatch.setenv("SOMETHING_ELSE", "x" * 3000)
    if not build.reproducible:
        pytest.skip("this system does not let a process switch address randomisation off")
    assert plans[0].read_bytes() == plans[1].read_bytes()
    engine_from_onnx(source, plans[1], rtx(precision, profile=BatchProfile(1, 1, 2)))
    assert plans[0].read_bytes() != plans[1].read_bytes()


def test_vgg19_in_fp16_takes_under_20_seconds_and_4_gib_in_all(encoders, tmp_path):
    source = encoders.vgg19
    script = (
        "import resource, sys; from dmsh_export.cli import main\n"
        "try: main()\n"
        "finally: print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "
        "resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = ["-c", script, "trt", str(source), "--out", str(tmp_path / "model.plan"), "--fp16"]
    began = time.perf_counter()
    answer = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120, check=True)
    took = time.perf_counter() - began
    kib = sum(map(int, answer.stdout.rpartition("PEAK")[2].split()))
    assert took < 20
    assert kib < 4 * 2**20
    assert kib > 100 * 2**10, resource.getrusage(resource.RUSAGE_SELF)  # or the measure measured nothing


def test_the_typed_graph_is_kept_on_request_with_its_manifest(encoders, tmp_path):
    typed = tmp_path / "model.fp16.onnx"
    build = engine_from_onnx(encoders.demo, tmp_path / "model.plan", rtx("fp16"), typed_out=typed)
    manifest = read_manifest(typed)
    assert (manifest["kind"], manifest["fingerprint"]) == ("onnx", build.fingerprint)
    again = engine_from_onnx(typed, tmp_path / "again.plan", rtx("fp16"))
    assert (again.fingerprint, again.parent_fingerprint) == (build.fingerprint, build.parent_fingerprint)


def refused(source, tmp_path, options, error, message):
    """Build over a plan that exists: the error comes, the old plan stays, nothing else is left."""
    out = tmp_path / "kept" / "model.plan"
    out.parent.mkdir(exist_ok=True)
    out.write_bytes(b"the old one")
    with pytest.raises(error, match=message):
        engine_from_onnx(source, out, options)
    assert out.read_bytes() == b"the old one"
    assert list(out.parent.iterdir()) == [out]


def test_a_head_in_fp16_is_found_by_the_audit_and_not_written(encoders, tmp_path):
    from onnxruntime.transformers.float16 import convert_float_to_float16

    whole = convert_float_to_float16(onnx.load(encoders.demo), keep_io_types=True, disable_shape_infer=True)
    cast = next(node for node in whole.graph.node if node.output[0] == "_to_copy")
    cast.attribute[0].i = onnx.TensorProto.FLOAT16
    onnx.save(whole, tmp_path / "whole.onnx")
    refused(
        tmp_path / "whole.onnx", tmp_path, rtx("fp16"), CheckError,
        r"not the fp16 engine that was asked for \(parsed network\): \d+ layers of the head are not fp32",
    )  # fmt: skip


def test_a_convolution_left_unquantised_is_found_by_the_audit(encoders, tmp_path):
    model = onnx.load(encoders.named("demo", "int8"))
    conv = next(node for node in model.graph.node if node.name == "node_conv2d_3")
    quantiser = next(node for node in model.graph.node if conv.input[0] in node.output)
    source = next(node for node in model.graph.node if quantiser.input[0] in node.output)
    conv.input[0] = source.input[0]
    onnx.save(model, tmp_path / "mixed.onnx")
    refused(
        tmp_path / "mixed.onnx", tmp_path, rtx("int8"), CheckError,
        r"1 of 8 convolutions of the trunk are not int8, the first is node_conv2d_3 in fp32",
    )  # fmt: skip


def test_an_operator_that_tensorrt_lacks_is_named_with_its_node(encoders, tmp_path):
    model = onnx.load(encoders.demo)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "Bernoulli"
    onnx.save(model, tmp_path / "model.onnx")
    refused(tmp_path / "model.onnx", tmp_path, rtx("fp32"), InputError, "was changed after its export")
    (tmp_path / "model.onnx").write_bytes(sealed(model))
    refused(
        tmp_path / "model.onnx", tmp_path, rtx("fp32"), InputError,
        rf"model\.onnx: TensorRT does not support the operator Bernoulli \(node {relu.name}\)",
    )  # fmt: skip


def test_a_manifest_of_another_file_or_fingerprint_is_refused(encoders, tmp_path):
    source = tmp_path / "model.onnx"
    beside = tmp_path / "model.onnx.json"
    source.write_bytes(encoders.demo.read_bytes())
    good = encoders.demo.with_name("demo.onnx.json").read_text()
    beside.write_text(good.replace(sha256_of_file(source), "0" * 64))
    refused(source, tmp_path, rtx("fp32"), InputError, "is about another file than")
    beside.write_text(good.replace(metadata_of(onnx.load(source))["dmsh.fingerprint"], "f" * 64))
    refused(source, tmp_path, rtx("fp32"), InputError, "says fingerprint ffff.*export the model again")


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_text("hello")
    refused(tmp_path / "model.onnx", tmp_path, rtx("fp32"), InputError, "is not an ONNX model")


@pytest.mark.parametrize("sizes", [(2, 1, 4), (1, 8, 4), (0, 1, 1), (5, 5, 4)])
def test_batch_sizes_out_of_order_are_refused(sizes):
    with pytest.raises(InputError, match="must be 1 or more, and in that order"):
        BatchProfile(*sizes)


def test_a_batch_no_gpu_could_hold_is_refused():
    with pytest.raises(InputError, match="--max-batch 99999999999 is over the largest, 65536"):
        BatchProfile(1, 8, 99_999_999_999)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimization_level": 6}, "--optimization-level 6 must be 0 to 5"),
        ({"workspace_mib": 0}, "--workspace-mib 0 must be 1 or more"),
        ({"version_compatible": True}, "--version-compatible: TensorRT-RTX has no such setting"),
        ({"hardware_compatibility": "ampere-plus"}, "--hardware-compatibility: TensorRT-RTX has no such setting"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, message, encoders, tmp_path):
    refused(encoders.demo, tmp_path, rtx("fp32", **options), InputError, message)


def test_a_folder_that_takes_no_files_is_one_line(encoders):
    from pathlib import Path

    with pytest.raises(InputError, match=r"/proc/model\.plan: cannot write into its folder"):
        engine_from_onnx(encoders.demo, Path("/proc/model.plan"), rtx("fp32"))
    with pytest.raises(InputError, match="name a file in a folder that exists"):
        engine_from_onnx(encoders.demo, Path("/absent/model.plan"), rtx("fp32"))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"out": "model.onnx"}, r"MODEL and --out would both be .*model\.onnx: name another file"),
        ({"out": "link.onnx"}, r"MODEL and --out would both be"),
        ({"out": "model.onnx.json"}, r"MODEL and --out would both be .*model\.onnx\.json"),
        ({"typed": "model.onnx"}, r"MODEL and --typed-onnx would both be"),
        ({"typed": "sub/../model.onnx"}, r"MODEL and --typed-onnx would both be"),
        ({"typed": "new.plan"}, r"--out and --typed-onnx would both be"),
        ({"cache": "new.plan.json"}, r"--out and --timing-cache would both be"),
        ({"cache": "model.onnx"}, r"MODEL and --timing-cache would both be"),
    ],
)
def test_one_file_for_two_things_is_refused_and_kept(named, message, encoders, tmp_path):
    source = tmp_path / "model.onnx"
    source.write_bytes(encoders.demo.read_bytes())
    (tmp_path / "link.onnx").symlink_to(source)
    (tmp_path / "sub").mkdir()
    before = sorted(tmp_path.iterdir())
    files = {name: tmp_path / file for name, file in {"out": "new.plan", **named}.items()}
    with pytest.raises(InputError, match=message):
        engine_from_onnx(
            source, files["out"], rtx("fp16", timing_cache=files.get("cache")), typed_out=files.get("typed")
        )
    assert sorted(tmp_path.iterdir()) == before
    assert source.read_bytes() == encoders.demo.read_bytes()


class OnGpu:
    """In place of a loaded engine: ONNX Runtime's codes; ``flip`` changes the last bit of each byte."""

    def __init__(self, model, flip):
        self.encoder, self.flip, self.batches = OnnxEncoder(model, check_known_answer=False), flip, []

    def run(self, images):
        self.batches.append(len(images))
        encoded = self.encoder.infer(images)
        return Encoded(encoded.code ^ np.uint8(1), encoded.logits) if self.flip else encoded

    def close(self):
        pass


@pytest.fixture
def on_h100(monkeypatch, encoders):
    """Builds as on a machine with an H100: what TensorRT would write is made up, what runs it is ONNX Runtime."""

    def worker(folder, on_progress):
        (folder / engine_worker.PLAN).write_bytes(b"a plan")
        (folder / engine_worker.TIMING_CACHE).write_bytes(b"a cache")
        return BuildResult("10.16.1.11", True, (), ())

    def start(flip=False, missing=None):
        loaded = OnGpu(encoders.demo, flip)

        def load(manifest):
            if missing:
                raise MissingError(missing)
            return loaded

        monkeypatch.setattr(trt_runner, "load_engine", load)
        return loaded

    monkeypatch.setattr(engine, "choose_flavour", lambda runtime: FlavourChoice("tensorrt", "asked for", H100))
    monkeypatch.setattr(engine, "run_worker", worker)
    return start


def test_a_plan_that_keeps_the_code_space_is_proven_by_its_known_answer_on_the_gpu(on_h100, encoders, tmp_path):
    loaded = on_h100()
    profile = BatchProfile(3, 3, 4)
    build = engine_from_onnx(encoders.demo, tmp_path / "a.plan", EngineOptions("fp32", profile))
    assert build.proof.proven
    assert sum(loaded.batches) == 9 + 3  # eight images and one alone, filled up to what the profile can divide
    assert (read_manifest(tmp_path / "a.plan")["proven"], read_plan_manifest(tmp_path / "a.plan").proven) == (
        True,
        True,
    )


def test_a_plan_that_gives_another_bit_on_the_gpu_is_not_written(on_h100, encoders, tmp_path):
    on_h100(flip=True)
    refused(
        encoders.demo, tmp_path, EngineOptions("fp32"), CheckError,
        r"demo\.onnx: the plan is not written, on H100 it gives other codes: known answer: 64 of 512 bits differ",
    )  # fmt: skip


def test_a_plan_that_nothing_could_run_says_so(on_h100, encoders, tmp_path):
    on_h100(missing="a PyTorch that finds the GPU is needed")
    engine_from_onnx(encoders.demo, tmp_path / "a.plan", EngineOptions("fp32"))
    assert read_manifest(tmp_path / "a.plan")["proven"] is False
    assert "could not be run where it was built: a PyTorch" in read_manifest(tmp_path / "a.plan")["proof"]
    assert "no run on a GPU has proven its codes yet" in read_plan_manifest(tmp_path / "a.plan").what_is_unproven
    engine_from_onnx(encoders.demo, tmp_path / "rtx.plan", EngineOptions("fp16"))
    assert read_manifest(tmp_path / "rtx.plan")["proven"] is None
    assert read_plan_manifest(tmp_path / "rtx.plan").what_is_unproven is None


def test_parity_on_a_gpu_proves_a_plan_and_its_manifest_says_so(on_h100, encoders, tmp_path):
    from project import DEMO_CHECKPOINT
    from typer.testing import CliRunner

    from dmsh_export.cli import app

    plan = tmp_path / "a.plan"
    on_h100(missing="no PyTorch")
    engine_from_onnx(encoders.demo, plan, EngineOptions("fp32"))
    for flip in (True, False):
        on_h100(flip=flip)
        done = CliRunner().invoke(app, ["parity", str(DEMO_CHECKPOINT), str(plan)])
        assert (done.exit_code == 0) != flip, done.output
        assert read_plan_manifest(plan).proven != flip
    assert "parity compared" in read_manifest(plan)["proof"]


def test_parity_proves_no_plan_that_took_the_place_of_the_one_it_ran(on_h100, encoders, tmp_path):
    plan = tmp_path / "a.plan"
    on_h100(missing="no PyTorch")
    engine_from_onnx(encoders.demo, plan, EngineOptions("fp32"))
    sha256, content = read_plan_manifest(plan).sha256, read_manifest(plan)
    plan.write_bytes(b"another plan")
    manifest_path(plan).write_text(json.dumps(content | {"sha256": hashlib.sha256(b"another plan").hexdigest()}))
    with pytest.raises(InputError, match=r"a\.plan was replaced while it was compared, so nothing is recorded"):
        record_parity(plan, sha256, 64)
    assert not read_plan_manifest(plan).proven


@pytest.mark.parametrize(
    ("compatibility", "targets"),
    [
        ("none", "compute capability 9.0"),
        ("same-compute-capability", "compute capability 9.0"),
        ("ampere-plus", "compute capability 8.0 and later"),
    ],
)
def test_the_manifest_names_the_gpus_a_plan_is_compatible_with(on_h100, encoders, tmp_path, compatibility, targets):
    on_h100()
    options = EngineOptions("fp32", hardware_compatibility=compatibility)
    engine_from_onnx(encoders.demo, tmp_path / "a.plan", options)
    assert read_manifest(tmp_path / "a.plan")["tensorrt"]["targets"] == targets
    assert read_plan_manifest(tmp_path / "a.plan").targets.text == targets


def test_the_place_of_the_timing_cache_is_checked_before_the_build_and_all_is_published_together(
    on_h100, encoders, tmp_path, monkeypatch
):
    on_h100()
    engine_from_onnx(encoders.demo, tmp_path / "a.plan", EngineOptions("fp32", timing_cache=tmp_path / "cache"))
    assert (tmp_path / "cache").read_bytes() == b"a cache"
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="absent/cache: name a file in a folder that exists"):
        engine_from_onnx(
            encoders.demo, tmp_path / "b.plan", EngineOptions("fp32", timing_cache=tmp_path / "absent/cache")
        )
    monkeypatch.setattr(engine, "_write_typed", lambda *_: (_ for _ in ()).throw(CheckError("no typed graph")))
    with pytest.raises(CheckError, match="no typed graph"):
        engine_from_onnx(encoders.demo, tmp_path / "b.plan", EngineOptions("fp32"), typed_out=tmp_path / "b.onnx")
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_without_its_metadata_is_named(encoders, tmp_path):
    model = onnx.load(encoders.demo)
    kept = [entry for entry in model.metadata_props if entry.key != "dmsh.image_size"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, tmp_path / "model.onnx")
    refused(
        tmp_path / "model.onnx", tmp_path, rtx("fp32"), InputError,
        r"model\.onnx was not made by dmsh-export: it has no dmsh\.image_size in its metadata",
    )  # fmt: skip


def test_a_build_that_is_killed_says_so_and_leaves_nothing(encoders, tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho out of luck >&2\nkill -9 $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(engine_process.sys, "executable", str(script))
    refused(encoders.demo, tmp_path, rtx("fp32"), CheckError, "was killed by signal 9, its last words: out of luck")


def test_an_interrupt_stops_the_build_and_leaves_nothing(encoders, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine_from_onnx(encoders.demo, tmp_path / "model.plan", rtx("fp32"), on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("requested", "gpu", "installed", "flavour", "why"),
    [
        ("auto", H100, {"tensorrt", "tensorrt-rtx"}, "tensorrt", "there is a GPU (H100) and the package"),
        ("auto", H100, {"tensorrt-rtx"}, "tensorrt-rtx", "tensorrt is not installed"),
        ("auto", None, {"tensorrt", "tensorrt-rtx"}, "tensorrt-rtx", "no NVIDIA GPU is found"),
        ("tensorrt", H100, {"tensorrt"}, "tensorrt", "asked for"),
        ("tensorrt-rtx", None, {"tensorrt-rtx"}, "tensorrt-rtx", "asked for"),
    ],
)
def test_the_flavour_follows_the_gpu_and_the_packages(requested, gpu, installed, flavour, why, monkeypatch):
    monkeypatch.setattr(tensorrt_api, "find_gpu", lambda: gpu)
    monkeypatch.setattr(tensorrt_api, "_installed", installed.__contains__)
    choice = choose_flavour(requested)
    assert choice.flavour == flavour
    assert why in choice.why


@pytest.mark.parametrize(
    ("requested", "gpu", "installed", "message"),
    [
        ("auto", None, set(), r"no TensorRT package is installed: pip install 'dmsh-toolkit\[tensorrt-rtx\]'"),
        ("tensorrt", H100, set(), r"tensorrt is not installed: pip install 'dmsh-toolkit\[tensorrt\]'"),
        ("tensorrt-rtx", H100, set(), r"tensorrt-rtx is not installed: pip install 'dmsh-toolkit\[tensorrt-rtx\]'"),
        ("tensorrt", None, {"tensorrt"}, "no NVIDIA GPU is found here: build there"),
    ],
)
def test_what_this_machine_lacks_is_named_with_its_remedy(requested, gpu, installed, message, monkeypatch):
    monkeypatch.setattr(tensorrt_api, "find_gpu", lambda: gpu)
    monkeypatch.setattr(tensorrt_api, "_installed", installed.__contains__)
    with pytest.raises(MissingError, match=message):
        choose_flavour(requested)


@pytest.mark.gpu
@pytest.mark.skipif(find_gpu() is None, reason="needs an NVIDIA GPU: TensorRT builds on the one it targets")
def test_tensorrt_builds_on_the_gpu_and_its_inspector_agrees(encoders, tmp_path):
    pytest.importorskip("tensorrt", reason="needs the extra dmsh-toolkit[tensorrt]")
    options = EngineOptions("fp16", runtime="tensorrt", timing_cache=tmp_path / "timing.cache")
    build = engine_from_onnx(encoders.demo, tmp_path / "model.plan", options)
    assert build.engine_audit
    assert (tmp_path / "timing.cache").stat().st_size > 0
