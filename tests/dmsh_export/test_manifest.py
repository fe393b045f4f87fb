"""A manifest is about one file's very bytes."""

import json
from pathlib import Path

import pytest

from dmsh_export.manifest import (
    add_results,
    manifest_path,
    manifest_rows,
    publish,
    read_manifest,
    write_manifest,
)
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
        (b"[" * 100_000, "is not JSON"),
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


def test_what_is_published_comes_with_its_manifest_and_nothing_else(tmp_path):
    model, plan, unused = (tmp_path / name for name in ("model.onnx", "model.plan", "cache"))
    with publish(model, plan, unused) as (model_draft, plan_draft, _):
        model_draft.write_bytes(b"a model")
        manifest_path(model_draft).write_text("{}")
        plan_draft.write_bytes(b"a plan")
        assert not model.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.json", "model.plan"]


def test_an_error_before_the_end_publishes_nothing(artefact, tmp_path):
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted():
        with publish(artefact, tmp_path / "model.plan") as (first, second):
            first.write_bytes(b"another")
            second.write_bytes(b"a plan")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "message"),
    [("/proc/m", "cannot write into its folder"), ("absent/m", "name a file in a folder"), (".", "name a file in")],
)
def test_a_place_that_takes_no_file_is_refused_before_anything_is_made(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message), publish(tmp_path / "fine", Path(name)):
        pytest.fail("something was made")
    assert list(tmp_path.iterdir()) == []


def test_results_are_added_to_a_manifest_that_is_about_its_file(artefact):
    add_results(artefact, {"proven": True})
    manifest = read_manifest(artefact)
    assert (manifest["proven"], manifest["kind"]) == (True, "onnx")
    artefact.write_bytes(b"another")
    with pytest.raises(InputError, match="is about another file"):
        add_results(artefact, {"proven": False})
