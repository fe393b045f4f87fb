import json
import re
import shutil

import integer_networks
import onnx
import pytest
import tiny_model
from plan_files import write_plan
from typer.testing import CliRunner

from dmsh_export.cli import app
from dmsh_export.lint.encoder import _onnx
from dmsh_export.lint.repository import lint_repository
from dmsh_export.seal import sealed
from dmsh_export.to_onnx.dialects import onnx_from_network
from dmsh_serving import gallery
from dmsh_serving.contract import Metadata
from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.images.framing import Framing
from dmsh_serving.triton.repository import write_repository
from dmsh_serving.triton.spec import OnnxRuntimeBackend, OpenVinoBackend, Plan, RepositorySpec, TensorRTBackend

CODES = tiny_model.codes_of(tiny_model.random_images(5))
SPACE = {"bits": tiny_model.BITS, "fingerprint": tiny_model.FINGERPRINT}
OTHER = "cd" * 32


def make(folder, encoder):
    """A sound repository in ``folder``, with its gallery."""
    gallery.build(folder / "gallery", CODES, None, None, **SPACE)
    fields = {"gallery": folder / "gallery", "image_size": tiny_model.SIZE, **SPACE}
    if encoder == "tensorrt":
        plans = [
            Plan(write_plan(folder / f"{name}.plan", gpu={"name": name, "compute_capability": cc}), (cc,), 1, 4, 8)
            for name, cc in (("ampere", "8.6"), ("hopper", "9.0"))
        ]
        spec = RepositorySpec(**fields, encoder=TensorRTBackend(tuple(plans)), max_batch=8)
    else:
        kinds = {
            "onnxruntime": {"encoder": OnnxRuntimeBackend()},
            "openvino": {"encoder": OpenVinoBackend()},
            "python": {},
        }
        said = {"dialect": "openvino"} if encoder == "openvino" else {}
        model = tiny_model.write(folder / "model.onnx", **said)
        spec = RepositorySpec(**fields, model=model, max_batch=8, **kinds[encoder])
    write_repository(folder / "repository", spec)
    return folder / "repository"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """One sound repository of each kind, to be copied."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("python", "onnxruntime", "openvino", "tensorrt")}
    for name, folder in folders.items():
        make(folder, name)
    return folders


@pytest.fixture
def copied(sound, tmp_path):
    def copy(encoder="python"):
        shutil.copytree(sound[encoder], tmp_path / "world")
        return tmp_path / "world" / "repository"

    return copy


def in_one_line(repository, model):
    """Return a configuration without its line breaks, which mean nothing."""
    return " ".join((repository / model / "config.pbtxt").read_text().split())


def edit(repository, model, old, new, count=1):
    text = in_one_line(repository, model)
    assert old in text
    (repository / model / "config.pbtxt").write_text(text.replace(old, new, count))


@pytest.mark.parametrize("encoder", ["python", "onnxruntime", "openvino", "tensorrt"])
def test_a_generated_repository_has_nothing_wrong(copied, encoder):
    report = lint_repository(copied(encoder))
    assert report.findings == ()
    assert len(report.models) == 5


def test_the_native_openvino_backend_is_remarked_on(copied):
    (note,) = lint_repository(copied("openvino")).notes
    assert "cannot be told to keep FP32" in note


@pytest.mark.parametrize("dialect", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("encoder", ["openvino", "python"])
def test_a_dialect_that_openvino_cannot_compute_is_found(copied, encoder, dialect):
    repository = copied(encoder)
    if encoder == "python":
        edit(repository, "dmsh_encoder", '"onnxruntime"', '"openvino"')
    tiny_model.write(repository / "dmsh_encoder" / "1" / "model.onnx", dialect=dialect)
    (finding,) = lint_repository(repository).findings
    assert f"dmsh_encoder/1/model.onnx is in the {dialect} dialect" in finding.problem


@pytest.mark.parametrize("encoder", ["onnxruntime", "openvino", "python"])
def test_an_encoder_that_another_tool_changed_is_found(copied, encoder):
    repository = copied(encoder)
    tiny_model.quantise(tiny_model.write(repository / "dmsh_encoder" / "1" / "model.onnx"))
    (finding,) = lint_repository(repository).findings
    assert "model.onnx was changed after its export" in finding.problem


def accelerated(name, precision):
    parameters = f'parameters {{ key: "precision_mode" value: "{precision}" }}'
    return (
        f'optimization {{ execution_accelerators {{ gpu_execution_accelerator {{ name: "{name}" {parameters} }} }} }}'
    )


# name: (encoder, model, text in its configuration, the mistake, what the finding says, what the fix says)
MISTAKES = {
    "dim of the image": (
        "python", "dmsh_encoder", "dims: [16, 16, 3]", "dims: [3, 16, 16]",
        r"input image: dims \[3, 16, 16\] is not that of dmsh_encoder/1/model.onnx", r"write dims: \[16, 16, 3\]"),
    "an unknown runtime": (
        "python", "dmsh_encoder", '"onnxruntime"', '"tvm"', "parameter runtime is tvm, there are", "write one of them"),
    "dim of the code": (
        "onnxruntime", "dmsh_encoder", "dims: [8]", "dims: [64]",
        r"output code: dims \[64\] is not that of", r"write dims: \[8\]"),
    "type": (
        "python", "dmsh_encoder", "TYPE_FP32", "TYPE_FP16",
        "output logits: data_type TYPE_FP16 is not that of", "write data_type: TYPE_FP32"),
    "type in a plan": (
        "tensorrt", "dmsh_encoder", "TYPE_UINT8 dims: [16", "TYPE_FP32 dims: [16",
        "input image: data_type TYPE_FP32 is not that of dmsh_encoder/1/model-sm86.plan", "TYPE_UINT8"),
    "name of an output": (
        "python", "dmsh_encoder", '"code"', '"hash"',
        "output hash is not in dmsh_encoder/1/model.onnx", "name one of logits, code"),
    "name of an input": (
        "python", "dmsh_decode", '"file"', '"picture"', "input file is missing", "add file, TYPE_STRING"),
    "size of the decoder": (
        "python", "dmsh_decode", 'key: "image_size" value { string_value: "16"',
        'key: "image_size" value { string_value: "32"', "parameter image_size is 32, .* has 16", "write 16"),
    "framing of the decoder": (
        "python", "dmsh_decode", "centre bicubic 2", "centre bicubic",
        "parameter framing is centre bicubic, .* has centre bicubic 2", "write centre bicubic 2"),
    "batch over the profile": (
        "tensorrt", "dmsh_encoder", "max_batch_size: 8", "max_batch_size: 64",
        r"max_batch_size 64 is more than the profile of dmsh_encoder/1/model-sm86.plan allows, 8",
        "max_batch_size: 8, or build with --max-batch 64"),
    "preferred batch": (
        "tensorrt", "dmsh_encoder", "[4, 8]", "[4, 16]", "preferred_batch_size 16 is over max_batch_size 8", "raise"),
    "warm-up": (
        "tensorrt", "dmsh_encoder", "dims: [16, 16, 3] random", "dims: [32, 32, 3] random",
        r'model_warmup "batch of 1": dims \[32, 32, 3\] are not those of image', r"write dims: \[16, 16, 3\]"),
    "batch of the warm-up": (
        "tensorrt", "dmsh_encoder", '"batch of 1" batch_size: 1 ', '"batch of 1" batch_size: 9 ',
        r'model_warmup "batch of 1": batch_size 9 is over max_batch_size 8', "write batch_size: 8"),
    "plan of another gpu": (
        "tensorrt", "dmsh_encoder", 'key: "9.0" value: "model-sm90.plan"', 'key: "8.9" value: "model-sm90.plan"',
        "gives model-sm90.plan to GPUs .* 8.9, it was built for compute capability 9.0", 'write key: "9.0"'),
    "batching off": (
        "python", "dmsh_ranker", "max_batch_size: 8", "max_batch_size: 0", "turns batching off", "1 or more"),
    "batch of an ensemble": (
        "python", "dmsh_search", "max_batch_size: 8", "max_batch_size: 9",
        "max_batch_size 9 is more than its step dmsh_encoder takes, 8", "write max_batch_size: 8"),
    "model's name": (
        "python", "dmsh_ranker", 'name: "dmsh_ranker"', 'name: "ranker"',
        "is not the folder's", 'write name: "dmsh_ranker"'),
    "backend": ("python", "dmsh_ranker", '"python"', '"pyhton"', "'pyhton' is not known here", "use one of python"),
    "step's name": (
        "python", "dmsh_search", '"dmsh_encoder"', '"dmsh_encodr"',
        r"step 1 \(dmsh_encodr\): no such model", "name one of dmsh_decode, dmsh_encoder"),
    "step's version": (
        "python", "dmsh_search", "model_version: -1", "model_version: 7",
        "model_version 7 is not in the repository", "-1 for the latest"),
    "map left out": (
        "python", "dmsh_search", 'input_map { key: "code" value: "code" }', "",
        "the model's input code is not mapped", "add input_map"),
    "map to an unknown tensor": (
        "python", "dmsh_search", 'input_map { key: "code" value: "code" }', 'input_map { key: "code" value: "cod" }',
        "nothing makes the tensor cod", "map an input to one of code, filter, image, k, logits, radius, rerank"),
    "map of an unknown input": (
        "python", "dmsh_search", 'input_map { key: "image"', 'input_map { key: "img"',
        "input_map has img, which is no input of that model", "name one of image"),
    "output nothing makes": (
        "python", "dmsh_search", 'output_map { key: "keys" value: "keys" }', "",
        "output keys: no step makes it", "add it to a step's output_map"),
    "ensemble's type": (
        "python", "dmsh_search_file", '"ids" data_type: TYPE_INT64', '"ids" data_type: TYPE_INT32',
        r"output ids: TYPE_INT32 \[-1\] is not what its step makes", r"write TYPE_INT64 \[-1\]"),
    "ranker of another model": (
        "python", "dmsh_ranker", tiny_model.FINGERPRINT, OTHER,
        "parameter fingerprint is cdcd.*, dmsh_encoder/1/model.onnx has abab", "write abab"),
    "bits": (
        "python", "dmsh_ranker", 'key: "bits" value { string_value: "64"', 'key: "bits" value { string_value: "32"',
        "parameter bits is 32, .* has 64", "write 64"),
    "gallery elsewhere": (
        "python", "dmsh_ranker", "../../gallery", "../../galery",
        "its gallery ../../galery cannot be served: .* is not a gallery", "gallery build"),
    "maps swapped": (
        "python", "dmsh_search", 'input_map { key: "k" value: "k" }', 'input_map { key: "k" value: "radius" }',
        r"step 2 \(dmsh_ranker\): input k takes the tensor radius, though there is a tensor k",
        'write input_map { key: "k" value: "k" }'),
    "version that is not there": (
        "python", "dmsh_decode", 'name: "dmsh_decode"',
        'name: "dmsh_decode" version_policy { specific { versions: [1, 3] } }',
        "version_policy asks for version 3, which has no folder", "name some of 1, or leave version_policy out"),
    "sequences": (
        "python", "dmsh_ranker", "dynamic_batching { }", "sequence_batching { }",
        "sequence_batching: requests of a search belong to no sequence", "write dynamic_batching"),
    "outputs swapped": (
        "python", "dmsh_search", 'output_map { key: "keys" value: "keys" }', 'output_map { key: "keys" value: "ids" }',
        r"output keys becomes the tensor ids, though the model has an output ids",
        'write output_map { key: "keys" value: "keys" }'),
    "answers kept": (
        "python", "dmsh_ranker", "max_batch_size: 8", "max_batch_size: 8 response_cache { enable: true }",
        "response_cache: an answer that is kept may be of a gallery or a model", "leave it out"),
    "lower precision": (
        "onnxruntime", "dmsh_encoder", "max_batch_size: 8", f"max_batch_size: 8 {accelerated('tensorrt', 'FP16')}",
        "execution_accelerators: tensorrt in FP16 is not known to give the codes", "precision_mode .FP32."),
    "another accelerator": (
        "onnxruntime", "dmsh_encoder", "max_batch_size: 8", f"max_batch_size: 8 {accelerated('migraphx', 'FP32')}",
        "execution_accelerators: migraphx in FP32", "precision_mode .FP32."),
    "not a configuration": (
        "python", "dmsh_decode", "max_batch_size: 8", "max_batch: 8", "it cannot be parsed: 1:", "mend that line"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_configuration_is_named_with_its_fix(copied, name):
    encoder, model, old, new, problem, fix = MISTAKES[name]
    repository = copied(encoder)
    edit(repository, model, old, new)
    assert_found(lint_repository(repository), f"{model}/config.pbtxt", problem, fix)


def assert_found(report, file, problem, fix):
    assert len(found_in(report, file, problem, fix)) == 1, report.findings


def found_in(report, file, problem, fix):
    return [
        finding
        for finding in report.findings
        if finding.file == file and re.search(problem, finding.problem) and re.search(fix, finding.fix)
    ]


@pytest.mark.parametrize(
    ("encoder", "file"),
    [
        ("python", "dmsh_encoder/1/model.onnx"), ("onnxruntime", "dmsh_encoder/1/model.onnx"),
        ("tensorrt", "dmsh_encoder/1/model-sm90.plan"), ("python", "dmsh_ranker/1/model.py"),
        ("python", "dmsh_decode/config.pbtxt"),
    ],
)  # fmt: skip
def test_a_missing_file_is_named(copied, encoder, file):
    repository = copied(encoder)
    (repository / file).unlink()
    assert_found(lint_repository(repository), file, "the file is missing", {
        "model.onnx": "put it there with dmsh-export repository MODEL --out",
        "model-sm90.plan": "put it there with dmsh-export repository MODEL --out",
        "model.py": "generate the repository again",
        "config.pbtxt": "remove the folder, or generate it again",
    }[file.rpartition("/")[2]])  # fmt: skip


@pytest.mark.parametrize("model", ["dmsh_decode", "dmsh_encoder", "dmsh_ranker", "dmsh_search", "dmsh_search_file"])
def test_a_model_that_is_not_there_is_named(copied, model):
    repository = copied()
    shutil.rmtree(repository / model)
    assert_found(lint_repository(repository), model, "the model is missing", "dmsh-export repository")


def test_a_service_of_images_alone_needs_none_of_the_models_that_take_files(copied):
    repository = copied()
    shutil.rmtree(repository / "dmsh_decode")
    shutil.rmtree(repository / "dmsh_search_file")
    assert lint_repository(repository).findings == ()


def test_a_low_precision_encoder_must_say_which_code_space_it_approximates(copied):
    repository = copied()
    tiny_model.write(repository / "dmsh_encoder/1/model.onnx", precision="int8", parent_fingerprint=OTHER)
    assert_found(
        lint_repository(repository),
        "dmsh_encoder/config.pbtxt",
        f"parameter parent_fingerprint is missing, dmsh_encoder/1/model.onnx has {OTHER}",
        f"write {OTHER}",
    )


def test_damaged_metadata_of_the_encoder_are_named(copied):
    repository = copied()
    tiny_model.write(repository / "dmsh_encoder/1/model.onnx", bits="many")
    assert_found(
        lint_repository(repository), "dmsh_encoder/1/model.onnx", "^model.onnx: dmsh.bits must be", "export the model"
    )


def test_a_missing_version_folder_is_named(copied):
    repository = copied()
    shutil.rmtree(repository / "dmsh_search" / "1")
    assert_found(lint_repository(repository), "dmsh_search/1", "the version's folder is missing", "make the folder")


def test_a_gallery_of_another_code_space_is_named(copied):
    repository = copied()
    folder = repository.parent / "gallery"
    gallery.build(folder, CODES[:, :4], None, None, bits=32, fingerprint=OTHER, overwrite=True)
    report = lint_repository(repository)
    assert len(report.findings) == 2
    for problem in ("has bits 32, dmsh_encoder/1/model.onnx has 64", f"has fingerprint {OTHER}"):
        assert_found(report, "dmsh_ranker/config.pbtxt", problem, "dmsh-serve gallery build --overwrite")


def test_an_encoder_of_another_code_space_is_named_in_every_model(copied):
    repository = copied()
    tiny_model.write(repository / "dmsh_encoder/1/model.onnx", fingerprint=OTHER)
    files = [finding.file for finding in lint_repository(repository).findings]
    assert sorted(files) == sorted(
        [f"{path.name}/config.pbtxt" for path in repository.iterdir()] + ["dmsh_ranker/config.pbtxt"]
    )


@pytest.mark.parametrize("model", ["dmsh_encoder", "dmsh_ranker"])
def test_an_ensemble_that_runs_a_model_that_nothing_is_compared_with_is_named(copied, model):
    repository = copied()
    shutil.copytree(repository / model, repository / f"{model}_b")
    edit(repository, f"{model}_b", f'name: "{model}"', f'name: "{model}_b"')
    assert lint_repository(repository).findings == ()
    edit(repository, "dmsh_search_file", f'model_name: "{model}"', f'model_name: "{model}_b"')
    assert_found(
        lint_repository(repository),
        "dmsh_search_file/config.pbtxt",
        f"it runs {model}_b, of which nobody compares what it computes",
        "let it run dmsh_decode, dmsh_encoder, dmsh_ranker",
    )


def test_a_second_version_of_another_code_space_is_named(copied):
    """Triton serves the newest version: a look at the first one says nothing of it."""
    repository = copied("onnxruntime")
    newest = repository / "dmsh_encoder" / "2" / "model.onnx"
    newest.parent.mkdir()
    tiny_model.write(newest)
    assert lint_repository(repository).findings == ()
    tiny_model.write(newest, fingerprint=OTHER, framing=str(Framing("pad")))
    report = lint_repository(repository)
    assert len(report.findings) == 2
    for problem in (
        f"its fingerprint is {OTHER}, dmsh_encoder/1/model.onnx has {'ab' * 32}",
        f"its framing is {Framing('pad')}",
    ):
        assert_found(report, "dmsh_encoder/2/model.onnx", problem, "keep the files of one encoder alone")


def test_a_second_plan_of_another_code_space_is_named(copied):
    repository = copied("tensorrt")
    gpu = {"name": "hopper", "compute_capability": "9.0"}
    write_plan(repository / "dmsh_encoder/1/model-sm90.plan", profile=(1, 4, 8), gpu=gpu, fingerprint=OTHER)
    report = lint_repository(repository)
    assert len(report.findings) == 1
    problem = f"its fingerprint is {OTHER}, dmsh_encoder/1/model-sm86.plan has"
    assert_found(report, "dmsh_encoder/1/model-sm90.plan", problem, "keep the files of one encoder alone")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08"])
def test_a_model_file_that_is_none_is_named(copied, content):
    repository = copied()
    (repository / "dmsh_encoder/1/model.onnx").write_bytes(content)
    assert_found(lint_repository(repository), "dmsh_encoder/1/model.onnx", "model.onnx", "export the model again")


def test_a_plan_changed_after_its_manifest_is_named(copied):
    repository = copied("tensorrt")
    (repository / "dmsh_encoder/1/model-sm86.plan").write_bytes(b"another")
    file = "dmsh_encoder/1/model-sm86.plan"
    assert_found(lint_repository(repository), file, "SHA-256 differs", "^build the plan again with dmsh-export trt")


def test_an_rtx_plan_is_named_as_one_that_triton_cannot_load(copied):
    repository = copied("tensorrt")
    write_plan(repository / "dmsh_encoder/1/model-sm86.plan", flavour="tensorrt-rtx", gpu=None)
    file = "dmsh_encoder/1/model-sm86.plan"
    assert_found(
        lint_repository(repository), file, "a tensorrt-rtx engine, which Triton's",
        "^build the plan again with dmsh-export trt --runtime tensorrt, then dmsh-export repository$",
    )  # fmt: skip


def test_a_plan_of_which_no_gpu_has_proven_the_codes_is_a_note_and_no_mistake(copied):
    repository = copied("tensorrt")
    (first, second) = lint_repository(repository).notes
    assert first.startswith("dmsh_encoder/1/model-sm86.plan: it keeps its checkpoint's code space, and no run on a GPU")
    assert second.startswith("dmsh_encoder/1/model-sm90.plan: ")
    gpu = {"name": "ampere", "compute_capability": "8.6"}
    write_plan(repository / "dmsh_encoder/1/model-sm86.plan", profile=(1, 4, 8), gpu=gpu, proven=True)
    assert lint_repository(repository).notes == (second,)
    shown = CliRunner().invoke(app, ["lint", str(repository)])
    assert shown.exit_code == 0
    assert f"note: {second}" in shown.output


def test_a_plan_for_every_gpu_since_ampere_may_be_given_to_each_of_them(copied):
    repository = copied("tensorrt")
    write_plan(
        repository / "dmsh_encoder/1/model-sm86.plan",
        gpu={"name": "ampere", "compute_capability": "8.6"},
        options={"hardware_compatibility": "ampere-plus"},
    )
    edit(repository, "dmsh_encoder", 'key: "8.6"', 'key: "12.0"')
    assert lint_repository(repository).findings == ()
    edit(repository, "dmsh_encoder", 'key: "12.0"', 'key: "7.5"')
    assert_found(
        lint_repository(repository), "dmsh_encoder/config.pbtxt",
        "7.5, it was built for compute capability 8.0 and later", "write key",
    )  # fmt: skip


def test_steps_may_stand_in_any_order(copied):
    repository = copied()
    head, first, second = in_one_line(repository, "dmsh_search").split("step {")
    text = f"{head} step {{ {second.removesuffix('}')} step {{ {first} }}"
    (repository / "dmsh_search" / "config.pbtxt").write_text(text)
    assert lint_repository(repository).findings == ()


# A file that cannot be parsed, a step that cannot be followed, a step whose own limit is wrong.
HIDES_OTHERS = {"not a configuration", "step's name", "batching off"}


def test_every_mistake_at_once_is_still_found(copied):
    repository = copied()
    done = []
    for name, (encoder, model, old, new, _, _) in MISTAKES.items():
        if encoder == "python" and name not in HIDES_OTHERS and old in in_one_line(repository, model):
            edit(repository, model, old, new)
            done.append(name)
    report = lint_repository(repository)
    assert len(done) >= 15
    assert [
        name for name in done if not found_in(report, f"{MISTAKES[name][1]}/config.pbtxt", *MISTAKES[name][4:])
    ] == []


def test_a_folder_that_is_no_repository_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no model folders"):
        lint_repository(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        lint_repository(tmp_path / "absent")


def test_the_command_prints_a_table_and_json_and_fails_on_a_finding(copied, tmp_path):
    repository = copied()
    runner = CliRunner()
    arguments = ["lint", str(repository), "--json", str(tmp_path / "found.json")]
    good = runner.invoke(app, arguments)
    assert good.exit_code == 0
    assert "nothing is wrong in its 5 models" in good.output.replace("\n", " ")
    assert json.loads((tmp_path / "found.json").read_text())["findings"] == []
    edit(repository, "dmsh_ranker", "max_batch_size: 8", "max_batch_size: 0")
    bad = runner.invoke(app, arguments)
    assert isinstance(bad.exception, CheckError)
    assert bad.exception.exit_code == 1
    assert "turns batching off" in bad.output.replace("\n", " ")
    (*_, last) = json.loads((tmp_path / "found.json").read_text())["findings"]
    assert set(last) == {"file", "problem", "fix"}


def test_if_the_encoders_file_cannot_be_read_its_configuration_says_which_codes_the_others_must_have(copied):
    repository = copied()
    file = repository / "dmsh_encoder" / "1" / "model.onnx"
    file.chmod(0o644)
    file.write_bytes(b"damaged")
    (alone,) = lint_repository(repository).findings
    assert alone.file == "dmsh_encoder/1/model.onnx"
    edit(repository, "dmsh_ranker", tiny_model.FINGERPRINT, OTHER)
    edit(
        repository,
        "dmsh_decode",
        'key: "image_size" value { string_value: "16" }',
        'key: "image_size" value { string_value: "3" }',
    )
    report = lint_repository(repository)
    assert len(report.findings) == 3
    assert_found(report, "dmsh_ranker/config.pbtxt", "fingerprint is cdcd", "write abab")
    assert_found(report, "dmsh_decode/config.pbtxt", "image_size is 3, dmsh_encoder/config.pbtxt has 16", "write 16")


@pytest.mark.parametrize("bits", ["many", ""])
def test_if_neither_says_how_many_bits_there_are_that_alone_is_found(copied, bits):
    repository = copied()
    file = repository / "dmsh_encoder" / "1" / "model.onnx"
    file.chmod(0o644)
    file.write_bytes(b"damaged")
    edit(
        repository,
        "dmsh_encoder",
        'key: "bits" value { string_value: "64" }',
        f'key: "bits" value {{ string_value: "{bits}" }}',
    )
    assert {found.file for found in lint_repository(repository).findings} <= {
        "dmsh_encoder/1/model.onnx", "dmsh_encoder/config.pbtxt"
    }  # fmt: skip


def test_what_is_missing_hides_no_mistake_behind_it(copied):
    repository = copied("tensorrt")
    (plan,) = (repository / "dmsh_encoder" / "1").glob("*8*6*.plan")
    plan.unlink()
    (other,) = (repository / "dmsh_encoder" / "1").glob("*.plan")
    other.with_name(other.name + ".json").unlink()
    shutil.rmtree(repository / "dmsh_decode")
    edit(repository, "dmsh_ranker", tiny_model.FINGERPRINT, OTHER)
    report = lint_repository(repository)
    assert_found(report, f"dmsh_encoder/1/{plan.name}", "the file is missing", "put it there")
    assert [found for found in report.findings if found.file == f"dmsh_encoder/1/{other.name}"]
    assert_found(report, "dmsh_ranker/config.pbtxt", "fingerprint is cdcd", "write abab")


def test_an_ensemble_without_a_source_for_a_step_has_that_one_mistake(copied):
    repository = copied()
    edit(repository, "dmsh_search", 'key: "code" value: "code" } input_map', 'key: "code" value: "nowhere" } input_map')
    (found,) = lint_repository(repository).findings
    assert "nothing makes the tensor nowhere" in found.problem


def test_a_step_that_names_no_version_takes_the_latest(copied):
    repository = copied()
    edit(repository, "dmsh_search", "model_version: -1", "", count=2)
    assert lint_repository(repository).findings == ()


@pytest.mark.parametrize("dialect", ["onnxruntime", "tensorrt", "openvino"])
def test_the_dialect_of_an_encoder_is_that_of_its_graph_whatever_it_says(tmp_path, dialect):
    model = onnx_from_network(integer_networks.network(), dialect, 20)
    said = {
        Metadata.FINGERPRINT: "ab" * 32,
        Metadata.BITS: "11",
        Metadata.IMAGE_SIZE: "16",
        Metadata.DIALECT: "openvino",
    }
    onnx.helper.set_model_props(model, said)
    (tmp_path / "model.onnx").write_bytes(sealed(model))
    assert _onnx(tmp_path / "model.onnx", "1/model.onnx", False).dialect == dialect
