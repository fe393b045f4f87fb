"""A manifest is about one file's very bytes."""

import json

import pytest

from dmsh_export.manifest import manifest_path, manifest_rows, read_manifest, write_manifest
from dmsh_serving.errors import InputError


@pytest.fixture
def artefact(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an artefact")
    write_manifest(
        path,
        kind="onnx",
        fingerprint="f" * 64,
        made_from={"checkpoint": "c" * 64},
        options={"fold": True},
        packages=("numpy",),
        results={"parity": {"passed": True}},
    )
    return path


def test_a_manifest_is_read_back_with_versions_and_results(artefact):
    manifest = read_manifest(artefact)
    assert manifest["artefact"] == "model.onnx"
    assert manifest["parity"] == {"passed": True}
    assert set(manifest["versions"]) == {"dmsh-toolkit", "python", "numpy"}


def test_an_artefact_that_changed_is_not_what_its_manifest_is_about(artefact):
    artefact.write_bytes(b"an artefacT")
    with pytest.raises(InputError, match="is about another file than"):
        read_manifest(artefact)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        (b"not json", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "is not a dmsh-manifest"),
        (b'{"format": "other"}', "is not a dmsh-manifest"),
        (b'{"format": "dmsh-manifest", "format_version": 2}', "has format version 2, this release reads 1"),
    ],
)
def test_what_is_no_manifest_is_refused_in_one_line(artefact, content, message):
    path = manifest_path(artefact)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_manifest(artefact)


def test_a_manifest_is_json_that_a_person_can_read(artefact):
    text = manifest_path(artefact).read_text()
    assert json.loads(text)["kind"] == "onnx"
    assert text.count("\n") > 15


def test_what_is_nested_in_a_manifest_becomes_rows_of_plain_text():
    audit = [{"part": "trunk", "type": "fp16"}, {"part": "head", "type": "fp32"}]
    manifest = {"kind": "plan", "tensorrt": {"gpu": {"name": "L4"}, "tf32": False}, "audit": {"network": audit}}
    assert manifest_rows({**manifest, "command": ["dmsh-export", "trt"], "cache": None, "engine": []}) == [
        ["kind", "plan"],
        ["tensorrt.gpu.name", "L4"],
        ["tensorrt.tf32", "False"],
        ["audit.network", "part trunk, type fp16"],
        ["audit.network", "part head, type fp32"],
        ["command", "dmsh-export trt"],
        ["cache", "-"],
        ["engine", "-"],
    ]
