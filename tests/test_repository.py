import itertools
from pathlib import Path

import pytest
import tiny_model
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from dmsh_serving.contract import DECODE_MODEL, ENCODER_MODEL, RANKER_MODEL, SEARCH_FILE_MODEL, SEARCH_MODEL
from dmsh_serving.errors import InputError
from dmsh_serving.repository import MODELS, RepositorySpec, repository_texts, write_repository

PROJECT = Path(__file__).resolve().parents[1]


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
K = ("TYPE_INT64", [1], True)
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
    RANKER_MODEL: ({"code": CODE, "k": K}, RESULTS),
    SEARCH_MODEL: ({"image": IMAGE, "k": K}, {"code": CODE, **RESULTS}),
    SEARCH_FILE_MODEL: ({"file": FILE, "k": K}, {"code": CODE, **RESULTS}),
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
        assert config.dynamic_batching.default_queue_policy.max_queue_size == spec.max_queue


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
    [({"bits": 0}, "bits = 0"), ({"fingerprint": "xyz"}, "64 hexadecimal"), ({"max_batch": 0}, "max_batch must be"),
     ({"image_size": -1}, "image_size must be"), ({"model": Path("absent.onnx")}, "absent.onnx is not a file")],
)  # fmt: skip
def test_a_spec_no_server_could_load_is_refused(change, message):
    fields = {"gallery": Path("gallery"), "bits": 64, "image_size": 16, "fingerprint": tiny_model.FINGERPRINT}
    with pytest.raises(InputError, match=message):
        RepositorySpec(**{**fields, **change})


def demo_fingerprint():
    """The demo model's, or zeros while there is none."""
    folder = PROJECT / "export" / "dmsh_model" / "demo_checkpoint"
    if not folder.exists():
        return "0" * 64
    from dmsh_model import load

    return load(folder).fingerprint


def test_the_committed_repository_is_what_the_generator_makes():
    spec = RepositorySpec(PROJECT / "gallery", bits=64, image_size=32, fingerprint=demo_fingerprint())
    committed = PROJECT / "model_repository"
    expected = repository_texts(committed, spec)
    files = [path for path in committed.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    found = {str(path.relative_to(committed)): path for path in files if ".onnx" not in path.name}
    assert set(found) == set(expected)
    for name, text in expected.items():
        assert found[name].read_text() == text
        if name.endswith(".pbtxt"):
            assert parsed(found[name].read_text()) == parsed(text)
