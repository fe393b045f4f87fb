import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_model
from google.protobuf import text_format
from plan_files import write_plan
from project import ROOT
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

from dmsh_export.cli import app
from dmsh_export.lint.repository import lint_repository
from dmsh_serving import gallery
from dmsh_serving.contract import DECODE_MODEL, ENCODER_MODEL, RANKER_MODEL, SEARCH_FILE_MODEL, SEARCH_MODEL
from dmsh_serving.errors import InputError, MissingError
from dmsh_serving.images.framing import Framing
from dmsh_serving.triton.repository import MODELS, repository_texts, write_repository
from dmsh_serving.triton.served_config import gallery_folder
from dmsh_serving.triton.spec import (
    OnnxRuntimeBackend,
    OpenVinoBackend,
    Plan,
    PythonBackend,
    RepositorySpec,
    TensorRTAccelerator,
    TensorRTBackend,
)


@pytest.fixture
def spec(tmp_path):
    model = tiny_model.write(tmp_path / "model.onnx")
    return RepositorySpec(tmp_path / "gallery", tiny_model.BITS, tiny_model.SIZE, tiny_model.FINGERPRINT, model=model)


def parsed(text):
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def tensors(fields):
    types = model_config_pb2.DataType
    return {
        field.name: (types.Name(field.data_type), list(field.dims), getattr(field, "optional", False))
        for field in fields
    }


IMAGE = ("TYPE_UINT8", [16, 16, 3], False)
CODE = ("TYPE_UINT8", [8], False)
ASKED = {
    "k": ("TYPE_INT64", [1], True),
    "radius": ("TYPE_INT64", [1], True),
    "filter": ("TYPE_INT64", [-1], True),
    "rerank": ("TYPE_STRING", [1], True),
}
FILE = ("TYPE_STRING", [1], False)
RESULTS = {
    "ids": ("TYPE_INT64", [-1], False),
    "distances": ("TYPE_INT32", [-1], False),
    "keys": ("TYPE_STRING", [-1], False),
    "gallery_version": ("TYPE_STRING", [1], False),
}
SIGNATURES = {
    DECODE_MODEL: ({"file": FILE}, {"image": IMAGE}),
    ENCODER_MODEL: ({"image": IMAGE}, {"code": CODE, "logits": ("TYPE_FP32", [64], False)}),
    RANKER_MODEL: ({"code": CODE, "logits": ("TYPE_FP32", [64], True), **ASKED}, RESULTS),
    SEARCH_MODEL: ({"image": IMAGE, **ASKED}, {"code": CODE, **RESULTS}),
    SEARCH_FILE_MODEL: ({"file": FILE, **ASKED}, {"code": CODE, **RESULTS}),
}


@pytest.mark.parametrize("model", MODELS)
def test_tritons_own_parser_reads_back_what_was_meant(spec, tmp_path, model):
    config = parsed(repository_texts(tmp_path / "repository", spec)[f"{model}/config.pbtxt"])
    assert config.name == model
    assert config.max_batch_size == spec.max_batch
    assert (tensors(config.input), tensors(config.output)) == SIGNATURES[model]
    assert config.parameters["bits"].string_value == "64"
    assert config.parameters["fingerprint"].string_value == tiny_model.FINGERPRINT
    if model in (SEARCH_MODEL, SEARCH_FILE_MODEL):
        assert config.platform == "ensemble"
    else:
        assert config.backend == "python"
        assert config.HasField("dynamic_batching")
        # A queue with limits makes lone requests wait half a second now and then: only where it is asked for.
        assert not config.dynamic_batching.HasField("default_queue_policy")


def test_limits_of_the_queues_are_what_was_asked_for(spec, tmp_path):
    spec = replace(spec, max_queue=9, max_wait_seconds=30)
    for model in (DECODE_MODEL, ENCODER_MODEL, RANKER_MODEL):
        config = parsed(repository_texts(tmp_path / "repository", spec)[f"{model}/config.pbtxt"])
        policy = config.dynamic_batching.default_queue_policy
        assert (policy.max_queue_size, policy.default_timeout_microseconds) == (9, 30_000_000)
        assert policy.allow_timeout_override


def test_a_missing_protobuf_names_the_extra_that_brings_it(spec, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(MissingError, match=r"tritonclient\.grpc is not installed.*dmsh-toolkit\[export\]"):
        write_repository(tmp_path / "repository", spec)
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize("ensemble", [SEARCH_MODEL, SEARCH_FILE_MODEL])
def test_every_tensor_of_an_ensemble_flows_from_a_step_or_an_input(spec, tmp_path, ensemble):
    texts = repository_texts(tmp_path / "repository", spec)
    config = parsed(texts[f"{ensemble}/config.pbtxt"])
    known = {field.name for field in config.input}
    for step in config.ensemble_scheduling.step:
        inputs, outputs = SIGNATURES[step.model_name]
        assert set(step.input_map) == set(inputs)
        assert set(step.input_map.values()) <= known
        assert set(step.output_map) <= set(outputs)
        known |= set(step.output_map.values())
    assert {field.name for field in config.output} <= known


def test_the_gallerys_path_is_relative_to_the_rankers_folder(tmp_path):
    spec = RepositorySpec(tmp_path / 'odd "name"' / "gallery", 64, 16, tiny_model.FINGERPRINT)
    text = repository_texts(tmp_path / "a" / "repository", spec)[f"{RANKER_MODEL}/config.pbtxt"]
    assert parsed(text).parameters["gallery"].string_value == '../../../odd "name"/gallery'


@pytest.mark.parametrize(
    ("out", "gallery", "named"),
    [
        ("repository", "link/gallery", "../../link/gallery"),
        ("repository", "v1/current", "../../v1/current"),
        ("link/repository", "link/gallery", "../../gallery"),
        ("link/repository", "v1/gallery", "../../../../v1/gallery"),
        ("repository", "link/../v3/gallery", "../../far/v3/gallery"),
        ("repository", "v2/../link/gallery", "../../link/gallery"),
    ],
)
def test_a_link_to_the_gallery_stays_one_unless_both_lie_behind_it(tmp_path, out, gallery, named):
    for made in ("far/v1/gallery", "far/v3/gallery", "v2"):
        (tmp_path / made).mkdir(parents=True)
    (tmp_path / "v1").symlink_to("far/v1")
    (tmp_path / "link").symlink_to("far/v1")
    (tmp_path / "v1" / "current").symlink_to("gallery")
    ranker = tmp_path / out / RANKER_MODEL
    spec = RepositorySpec(tmp_path / gallery, 64, 16, tiny_model.FINGERPRINT)
    text = repository_texts(tmp_path / out, spec)[f"{RANKER_MODEL}/config.pbtxt"]
    assert parsed(text).parameters["gallery"].string_value == named
    ranker.mkdir(parents=True)
    assert gallery_folder(ranker, named).samefile(tmp_path / gallery)


def test_the_same_spec_gives_the_same_bytes_and_the_model_comes_along(spec, tmp_path):
    spec.model.with_name("model.onnx.json").write_text("{}")
    contents = []
    for _ in range(2):
        write_repository(tmp_path / "repository", spec)
        contents.append(
            {
                path.relative_to(tmp_path): path.read_bytes()
                for path in (tmp_path / "repository").rglob("*")
                if path.is_file()
            }
        )
    assert contents[0] == contents[1]
    version = tmp_path / "repository" / ENCODER_MODEL / "1"
    assert (version / "model.onnx").read_bytes() == spec.model.read_bytes()
    assert (version / "model.onnx.json").read_text() == "{}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.json", "repository"]


def test_a_folder_that_is_not_a_generated_repository_is_left_alone(spec, tmp_path):
    out = tmp_path / "repository"
    write_repository(out, spec)
    (out / "thesis.txt").write_text("ten years")
    with pytest.raises(InputError, match=r"holds thesis\.txt, which no generated repository does"):
        write_repository(out, spec)
    assert (out / "thesis.txt").read_text() == "ten years"


def test_a_missing_parent_is_named(spec, tmp_path):
    with pytest.raises(InputError, match="is not a folder: create it"):
        write_repository(tmp_path / "absent" / "repository", spec)


def test_a_write_that_fails_midway_leaves_the_old_repository(spec, tmp_path, monkeypatch):
    out = tmp_path / "repository"
    write_repository(out, spec)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    writes = itertools.count()
    write_text = Path.write_text

    def full_disk(path, text):
        if next(writes) == 4:
            raise OSError(28, "No space left on device")
        return write_text(path, text)

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_repository(out, spec)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "repository"]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"bits": 0}, "bits = 0"), ({"max_wait_seconds": 0}, "max_wait_seconds must be"),
     ({"encoder": PythonBackend(threads=0)}, "encoder threads must be"),
     ({"encoder": PythonBackend(instances=0)}, "encoder instances must be"),
     ({"encoder": PythonBackend(runtime="openvino", streams=0)}, "encoder streams must be"),
     ({"encoder": OpenVinoBackend(threads=0)}, "encoder threads must be"),
     ({"queue_delay_microseconds": -1}, "queue_delay_microseconds must be"),
     ({"encoder": OnnxRuntimeBackend(TensorRTAccelerator(workspace_mib=0))}, "workspace_mib must be"),
     ({"fingerprint": "xyz"}, "64 hexadecimal"), ({"max_batch": 0}, "max_batch must be"),
     ({"image_size": -1}, "image_size must be"), ({"model": Path("absent.onnx")}, "absent.onnx is not a file")],
)  # fmt: skip
def test_a_spec_no_server_could_load_is_refused(change, message):
    fields = {"gallery": Path("gallery"), "bits": 64, "image_size": 16, "fingerprint": tiny_model.FINGERPRINT}
    with pytest.raises(InputError, match=message):
        RepositorySpec(**{**fields, **change})


def demo_fingerprint():
    return json.loads((ROOT / "demo" / "checkpoint" / "config.json").read_text())["fingerprint"]


def test_the_committed_repository_is_what_the_generator_makes():
    """Made by: dmsh-export repository demo/checkpoint --gallery gallery --out model_repository"""
    framing = Framing.parse(None)  # its checkpoint names none
    spec = RepositorySpec(ROOT / "gallery", bits=64, image_size=32, fingerprint=demo_fingerprint(), framing=framing)
    committed = ROOT / "model_repository"
    expected = repository_texts(committed, spec)
    files = [path for path in committed.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    found = {str(path.relative_to(committed)): path for path in files if ".onnx" not in path.name}
    assert set(found) == set(expected)
    for name, text in expected.items():
        assert found[name].read_text() == text
        if name.endswith(".pbtxt"):
            assert parsed(found[name].read_text()) == parsed(text)


def encoder_config(spec, out=Path("repository")):
    text = repository_texts(out, spec)[f"{ENCODER_MODEL}/config.pbtxt"]
    return parsed(text), text


def warmups(config):
    types = model_config_pb2.DataType
    return [
        (warmup.batch_size, {name: (types.Name(of.data_type), list(of.dims)) for name, of in warmup.inputs.items()})
        for warmup in config.model_warmup
    ]


@pytest.fixture
def plan(tmp_path):
    """Make a plan's file; its bytes are its name."""

    def make(name="model.plan", capability="8.6", **changes):
        (tmp_path / name).write_text(name)
        (tmp_path / f"{name}.json").write_text("{}")
        batches = {"min_batch": 1, "opt_batch": 8, "max_batch": 32}
        return Plan(tmp_path / name, (capability,), **{**batches, **changes})

    return make


def plans_spec(tmp_path, *plans, **changes):
    fields = {"bits": 64, "image_size": 16, "fingerprint": tiny_model.FINGERPRINT, **changes}
    return RepositorySpec(tmp_path / "gallery", encoder=TensorRTBackend(plans), **fields)


def test_a_tensorrt_encoder_is_described_as_its_plan_is(plan, tmp_path):
    config, text = encoder_config(plans_spec(tmp_path, plan()))
    assert (config.platform, config.backend, config.max_batch_size) == ("tensorrt_plan", "", 32)
    assert (tensors(config.input), tensors(config.output)) == SIGNATURES[ENCODER_MODEL]
    assert (config.default_model_filename, dict(config.cc_model_filenames)) == ("model.plan", {})
    assert [group.kind for group in config.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_GPU]
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 32]
    assert warmups(config) == [(size, {"image": ("TYPE_UINT8", [16, 16, 3])}) for size in (1, 8, 32)]
    assert config.parameters["fingerprint"].string_value == tiny_model.FINGERPRINT
    assert "version-compatible" not in text


def test_batches_are_no_larger_than_asked_for(plan, tmp_path):
    config, _ = encoder_config(plans_spec(tmp_path, plan(), max_batch=4))
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert [size for size, _ in warmups(config)] == [1, 4]


def test_each_gpu_gets_its_own_plan(plan, tmp_path):
    spec = plans_spec(tmp_path, plan("a.plan", "8.6"), plan("b.plan", "12.0", max_batch=48), plan("c.plan", "9.0"))
    config, _ = encoder_config(spec)
    assert config.default_model_filename == "model-sm86.plan"
    assert dict(config.cc_model_filenames) == {
        "8.6": "model-sm86.plan",
        "9.0": "model-sm90.plan",
        "12.0": "model-sm120.plan",
    }
    write_repository(tmp_path / "repository", spec)
    version = tmp_path / "repository" / ENCODER_MODEL / "1"
    for name, source in (("model-sm86.plan", "a.plan"), ("model-sm120.plan", "b.plan"), ("model-sm90.plan", "c.plan")):
        assert (version / name).read_text() == source
        assert (version / f"{name}.json").read_text() == "{}"
    assert not (version / "model.py").exists()


def test_a_version_compatible_plan_says_how_to_start_triton(plan, tmp_path):
    config, text = encoder_config(plans_spec(tmp_path, plan(version_compatible=True)))
    assert "--backend-config=tensorrt,version-compatible=true" in text
    assert config.platform == "tensorrt_plan"
    assert config.parameters["version_compatible"].string_value == "true"


def test_a_python_encoder_says_its_runtime_instances_and_delay(spec):
    encoder = PythonBackend(threads=4, runtime="openvino", streams=2, instances=3)
    config, _ = encoder_config(replace(spec, encoder=encoder, queue_delay_microseconds=500))
    said = {name: config.parameters[name].string_value for name in ("runtime", "threads", "streams")}
    assert said == {"runtime": "openvino", "threads": "4", "streams": "2"}
    assert [group.count for group in config.instance_group] == [3]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    plain, _ = encoder_config(spec)
    assert (plain.parameters["runtime"].string_value, plain.instance_group[0].count) == ("onnxruntime", 1)
    assert plain.dynamic_batching.max_queue_delay_microseconds == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"streams": 2}, "ONNX Runtime has no streams"), ({"runtime": "tvm"}, "no runtime 'tvm', there are onnxruntime")],
)
def test_a_runtime_that_cannot_do_it_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        PythonBackend(**options)


def test_tritons_own_openvino_backend_is_told_what_it_can_be_told_and_people_the_rest(spec):
    config, text = encoder_config(replace(spec, encoder=OpenVinoBackend(threads=4, streams=2), max_batch=1))
    assert (config.backend, config.default_model_filename) == ("openvino", "model.onnx")
    assert (tensors(config.input), tensors(config.output)) == SIGNATURES[ENCODER_MODEL]
    assert [(group.kind, group.count) for group in config.instance_group] == [
        (model_config_pb2.ModelInstanceGroup.KIND_CPU, 2)
    ]
    said = {name: value.string_value for name, value in config.parameters.items()}
    expected = {"INFERENCE_NUM_THREADS": "4", "NUM_STREAMS": "2", "PERFORMANCE_HINT": "LATENCY"}
    assert expected.items() <= said.items()
    assert said["ENABLE_BATCH_PADDING"] == "YES"
    assert "cannot be told to keep FP32" in text


@pytest.mark.parametrize("encoder", [PythonBackend(), OnnxRuntimeBackend(), OpenVinoBackend()])
def test_a_low_precision_encoder_says_which_code_space_it_approximates(spec, encoder):
    spec = replace(spec, encoder=encoder)
    parents = [encoder_config(replace(spec, parent_fingerprint=parent))[0] for parent in ("cd" * 32, None)]
    assert parents[0].parameters["parent_fingerprint"].string_value == "cd" * 32
    assert "parent_fingerprint" not in parents[1].parameters
    with pytest.raises(InputError, match="64 hexadecimal digits, got 'cd'"):
        replace(spec, parent_fingerprint="cd")


def test_an_onnxruntime_encoder_runs_where_it_can(spec, tmp_path):
    config, _ = encoder_config(replace(spec, encoder=OnnxRuntimeBackend()))
    assert (config.platform, config.max_batch_size) == ("onnxruntime_onnx", 32)
    assert (tensors(config.input), tensors(config.output)) == SIGNATURES[ENCODER_MODEL]
    assert [group.kind for group in config.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_AUTO]
    assert not config.HasField("optimization")
    assert [size for size, _ in warmups(config)] == [1, 32]
    write_repository(tmp_path / "repository", replace(spec, encoder=OnnxRuntimeBackend()))
    version = tmp_path / "repository" / ENCODER_MODEL / "1"
    assert sorted(path.name for path in version.iterdir()) == [".keep", "model.onnx"]


@pytest.mark.parametrize("cache", [None, '/cache/of "engines"'])
def test_the_tensorrt_provider_is_told_precision_memory_and_cache(spec, cache):
    accelerator = TensorRTAccelerator(workspace_mib=2048, cache=cache)
    config, text = encoder_config(replace(spec, encoder=OnnxRuntimeBackend(accelerator)))
    (found,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert found.name == "tensorrt"
    expected = {"precision_mode": "FP32", "max_workspace_size_bytes": str(2 << 30)}
    if cache:
        expected |= {"trt_engine_cache_enable": "true", "trt_engine_cache_path": cache}
    assert dict(found.parameters) == expected
    assert [group.kind for group in config.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_GPU]
    assert "NVIDIA_TF32_OVERRIDE=0" in text


def test_plans_that_cannot_be_served_are_refused(plan, spec, tmp_path):
    with pytest.raises(InputError, match=r"compute capabilities are written as 8\.6, got sm_86"):
        plan(capability="sm_86")
    with pytest.raises(InputError, match="build it with --min-batch 1"):
        plan(min_batch=2)
    with pytest.raises(InputError, match=r"a\.plan and .*b\.plan are both for compute capability 8\.6"):
        TensorRTBackend((plan("a.plan"), plan("b.plan")))
    with pytest.raises(InputError, match="name one with --plan"):
        TensorRTBackend(())
    with pytest.raises(InputError, match=r"max_batch = 33 is more than .*takes, 32: .*--max-batch 33"):
        plans_spec(tmp_path, plan(), max_batch=33)
    with pytest.raises(InputError, match="serves plans, not an ONNX file"):
        plans_spec(tmp_path, plan(), model=spec.model)
    (tmp_path / "model.plan").unlink()
    with pytest.raises(InputError, match=r"model\.plan is not a file"):
        plans_spec(tmp_path, Plan(tmp_path / "model.plan", ("8.6",), 1, 8, 32))


def export_repository(tmp_path, *arguments):
    """Run the command; return its error's message, or None."""
    command = ["repository", *map(str, arguments), "--gallery", str(tmp_path / "gallery")]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "repository")])
    if done.exit_code == 0:
        return None
    assert isinstance(done.exception, InputError), done.output
    assert not (tmp_path / "repository").exists()
    return str(done.exception)


def test_the_command_serves_one_plan_a_gpu_as_their_manifests_say(spec, tmp_path):
    hopper = {"name": "NVIDIA H100", "compute_capability": "9.0"}
    first = write_plan(tmp_path / "a.plan")
    second = write_plan(tmp_path / "b.plan", gpu=hopper, profile=(1, 2, 6), options={"version_compatible": True})
    plans = ["--plan", first, "--plan", second]
    assert export_repository(tmp_path, spec.model, "--encoder", "tensorrt", *plans) is None
    version = tmp_path / "repository" / ENCODER_MODEL
    config = parsed((version / "config.pbtxt").read_text())
    assert dict(config.cc_model_filenames) == {"8.6": "model-sm86.plan", "9.0": "model-sm90.plan"}
    assert config.max_batch_size == 6
    assert "version-compatible=true" in (version / "config.pbtxt").read_text()
    gallery.build(tmp_path / "gallery", np.empty((0, 8), np.uint8), None, None, bits=64, fingerprint=spec.fingerprint)
    assert lint_repository(tmp_path / "repository").findings == ()


def test_the_command_shares_the_gpus_out_when_a_plan_runs_on_many(spec, tmp_path):
    hopper = {"name": "NVIDIA H100", "compute_capability": "9.0"}
    exact = write_plan(tmp_path / "exact.plan", gpu=hopper, proven=True)
    many = write_plan(tmp_path / "many.plan", options={"hardware_compatibility": "ampere-plus"})
    plans = ["--plan", exact, "--plan", many]
    assert export_repository(tmp_path, spec.model, "--encoder", "tensorrt", *plans) is None
    version = tmp_path / "repository" / ENCODER_MODEL
    config = parsed((version / "config.pbtxt").read_text())
    files = dict(config.cc_model_filenames)
    assert (version / "1" / files.pop("9.0")).read_bytes() == b"exact.plan"
    assert {"8.0", "8.6", "8.9", "10.0", "12.0"} <= files.keys()
    assert {(version / "1" / name).read_bytes() for name in files.values()} == {b"many.plan"}
    assert (version / "1" / config.default_model_filename).read_bytes() == b"many.plan"
    gallery.build(tmp_path / "gallery", np.empty((0, 8), np.uint8), None, None, bits=64, fingerprint=spec.fingerprint)
    assert lint_repository(tmp_path / "repository").findings == ()


def test_the_command_notes_a_plan_of_which_no_gpu_has_proven_the_codes(spec, tmp_path):
    for proven in (False, True):
        plan = write_plan(tmp_path / "model.plan", proven=proven)
        command = ["repository", str(spec.model), "--encoder", "tensorrt", "--plan", str(plan)]
        done = CliRunner().invoke(
            app, [*command, "--gallery", str(tmp_path / "g"), "--out", str(tmp_path / f"r{proven}")]
        )
        assert done.exit_code == 0, done.output
        assert ("no run on a GPU has proven its codes yet" in done.output) != proven


def test_the_command_accelerates_in_the_precision_the_model_has(spec, tmp_path):
    assert export_repository(tmp_path, spec.model, "--encoder", "onnxruntime", "--accelerate") is None
    config = parsed((tmp_path / "repository" / ENCODER_MODEL / "config.pbtxt").read_text())
    (found,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert found.parameters["precision_mode"] == "FP32"


def test_the_command_refuses_what_does_not_belong_together(spec, tmp_path):
    rtx = write_plan(tmp_path / "rtx.plan", flavour="tensorrt-rtx", gpu=None)
    other = write_plan(tmp_path / "other.plan", fingerprint="cd" * 32)
    sound = write_plan(tmp_path / "sound.plan")
    tensorrt = ["--encoder", "tensorrt"]
    for arguments, message in (
        (tensorrt, "serves the engines that --plan names"),
        (["--plan", sound], "the other encoders take none"),
        (["--accelerate"], "--accelerate is for --encoder onnxruntime"),
        (["--engine-cache", "/cache"], "give both, or neither"),
        ([*tensorrt, "--plan", rtx], "rtx.plan is a tensorrt-rtx engine, Triton loads TensorRT's own only"),
        ([*tensorrt, "--plan", other], "other.plan was not built from"),
        ([*tensorrt, "--plan", sound, "--plan", other], "of different code spaces"),
        ([*tensorrt, "--plan", sound, "--max-batch", "9"], "max_batch = 9 is more than"),
        ([*tensorrt, "--plan", tmp_path / "absent.plan"], "absent.plan is not a file"),
    ):
        assert message in export_repository(tmp_path, spec.model, *arguments)


def test_a_low_precision_plan_is_served_as_the_code_space_of_its_own(spec, tmp_path):
    half = write_plan(tmp_path / "half.plan", fingerprint="cd" * 32, parent_fingerprint=spec.fingerprint)
    assert export_repository(tmp_path, spec.model, "--encoder", "tensorrt", "--plan", half) is None
    for model in MODELS:
        config = parsed((tmp_path / "repository" / model / "config.pbtxt").read_text())
        assert config.parameters["fingerprint"].string_value == "cd" * 32
        parent = config.parameters["parent_fingerprint"].string_value if model == ENCODER_MODEL else spec.fingerprint
        assert parent == spec.fingerprint


def test_the_command_lets_no_provider_choose_the_types_of_an_integer_network(tmp_path):
    model = tiny_model.write(tmp_path / "low.onnx", precision="int8")
    assert "low.onnx is int8: ONNX Runtime's TensorRT provider would choose" in export_repository(
        tmp_path, model, "--encoder", "onnxruntime", "--accelerate"
    )


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
@pytest.mark.parametrize("encoder", ["python", "onnxruntime", "onnxruntime --accelerate", "openvino --native"])
def test_the_command_serves_no_graph_of_a_low_precision_plan(tmp_path, precision, encoder):
    model = tiny_model.write(tmp_path / "low.onnx", precision=precision, parent_fingerprint="cd" * 32)
    said = export_repository(tmp_path, model, "--encoder", *encoder.split())
    assert f"low.onnx is the {precision} graph of a TensorRT plan" in said


@pytest.mark.parametrize("encoder", ["python", "onnxruntime", "openvino", "openvino --native"])
def test_the_command_serves_no_file_that_another_tool_changed(tmp_path, encoder):
    model = tiny_model.quantise(tiny_model.write(tmp_path / "model.onnx"))
    assert "was changed after its export" in export_repository(tmp_path, model, "--encoder", *encoder.split())


@pytest.mark.parametrize("encoder", ["python", "onnxruntime"])
@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ({"bits": "many"}, "dmsh.bits must be a positive whole number, got 'many'"),
        ({"bits": "9" * 5000}, "dmsh.bits must be a positive whole number, got '999"),
        ({"bits": "2000"}, "model.onnx: bits = 2000"),
        ({"image_size": "-1"}, "dmsh.image_size must be a positive whole number, got '-1'"),
        ({"without": ["dmsh.image_size"]}, "it has no dmsh.image_size in its metadata"),
    ],
)
def test_the_command_names_damaged_metadata(tmp_path, encoder, damaged, message):
    model = tiny_model.write(tmp_path / "model.onnx", **damaged)
    assert message in export_repository(tmp_path, model, "--encoder", encoder)
