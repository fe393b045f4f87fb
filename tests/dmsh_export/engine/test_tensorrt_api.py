"""What our TensorRT code reads off the package exists in TensorRT 10.16, in 11.4 and in TensorRT-RTX.

The seam it holds the code to: the module is called ``trt``, and each object of it lives in a name annotated
``tensorrt.CLASS``. tests/data/tensorrt-api holds the names each package exposes, read from its bindings.
"""

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from project import ROOT

SOURCES = [
    path
    for path in sorted((ROOT / "export" / "dmsh_export").rglob("*.py"))
    if re.search(r"\btrt\.[A-Z]|\btensorrt\.[A-Z]", path.read_text())
]
PACKAGES = {
    path.stem: json.loads(path.read_text())["api"] for path in sorted((ROOT / "tests/data/tensorrt-api").glob("*.json"))
}
ANNOTATION = re.compile(r"^tensorrt\.(\w+)(?: \| None)?$")


@dataclass(frozen=True)
class Read:
    """``member`` of ``owner`` (a class or enum of the package; empty for the module itself), and where."""

    owner: str
    member: str
    where: str


def reads_of(path: Path, source: str | None = None) -> list[Read]:
    tree = ast.parse(source or path.read_text())
    found = [
        Read("", match.group(1), f"{path.name}:{node.lineno}")
        for node in ast.walk(tree)
        if (annotation := annotation_of(node)) and (match := ANNOTATION.match(annotation))
    ]
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        classes = {
            name: match.group(1)
            for node in ast.walk(function)
            if (name := name_of(node)) and (match := ANNOTATION.match(annotation_of(node) or ""))
        }
        for node in ast.walk(function):
            if not isinstance(node, ast.Attribute):
                continue
            where = f"{path.name}:{node.lineno}"
            if isinstance(node.value, ast.Name) and node.value.id == "trt":
                found.append(Read("", node.attr, where))
            elif isinstance(node.value, ast.Name) and node.value.id in classes:
                found.append(Read(classes[node.value.id], node.attr, where))
            elif isinstance(node.value, ast.Attribute) and ast.unparse(node.value.value) == "trt":
                found.append(Read(node.value.attr, node.attr, where))
    return found


def annotation_of(node: ast.AST) -> str | None:
    annotation = getattr(node, "annotation", None) if isinstance(node, ast.arg | ast.AnnAssign) else None
    if annotation is None:
        return None
    return annotation.value if isinstance(annotation, ast.Constant) else ast.unparse(annotation)


def name_of(node: ast.AST) -> str | None:
    if isinstance(node, ast.arg):
        return node.arg
    return node.target.id if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else None


def absent(read: Read, api: dict[str, list[str]]) -> bool:
    if read.member.startswith("__"):  # what every Python module and class has
        return False
    return read.member not in (api if not read.owner else api.get(read.owner, []))


def test_three_packages_are_compared_and_the_builder_is_among_the_sources():
    assert sorted(PACKAGES) == ["tensorrt-10.16", "tensorrt-11.4", "tensorrt_rtx-1.7.1"]
    assert {"audit.py", "worker.py"} <= {path.name for path in SOURCES}
    reads = {(read.owner, read.member) for path in SOURCES for read in reads_of(path)}
    for expected in (
        ("", "Builder"),
        ("Builder", "build_serialized_network"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("IBuilderConfig", "clear_flag"),
        ("OnnxParser", "get_error"),
        ("ILayer", "metadata"),
    ):
        assert expected in reads


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_name_we_read_exists(path, package):
    assert [read for read in reads_of(path) if absent(read, PACKAGES[package])] == []


@pytest.mark.parametrize("flag", ["FP16", "BF16", "INT8", "FP8", "OBEY_PRECISION_CONSTRAINTS"])
def test_a_weakly_typed_flag_would_be_found(flag):
    source = f"def build(trt, config: 'tensorrt.IBuilderConfig'):\n    config.set_flag(trt.BuilderFlag.{flag})\n"
    reads = reads_of(Path("wrong.py"), source)
    assert [read.member for read in reads if absent(read, PACKAGES["tensorrt-11.4"])] == [flag]
    assert not any(absent(read, PACKAGES["tensorrt-10.16"]) for read in reads)


def test_a_method_that_tensorrt_11_dropped_would_be_found():
    source = "def build(builder: 'tensorrt.Builder'):\n    return builder.platform_has_fast_fp16\n"
    reads = reads_of(Path("wrong.py"), source)
    assert [read.member for read in reads if absent(read, PACKAGES["tensorrt-11.4"])] == ["platform_has_fast_fp16"]


def test_neither_a_weak_type_nor_an_explicit_batch_is_ever_asked_for():
    words = {read.member for path in SOURCES for read in reads_of(path) if read.owner}
    assert not words & {"FP16", "BF16", "INT8", "FP8", "EXPLICIT_BATCH", "int8_calibrator"}
    assert "STRONGLY_TYPED" in words


def test_the_installed_rtx_exposes_what_its_list_says():
    trt = pytest.importorskip("tensorrt_rtx")
    for path in SOURCES:
        for read in reads_of(path):
            owner = trt if not read.owner else getattr(trt, read.owner)
            assert hasattr(owner, read.member), read
