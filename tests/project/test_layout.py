"""A stranger finds a file by its path: small folders, names that say one thing, imports that only go down."""

import ast
import re
from collections import Counter

import pytest
from project import ROOT
from sources import INSTALLED, PACKAGES, circles, folder_graph, import_graph, imported, modules

MOST_MODULES = 14
FORBIDDEN = {
    "dmsh_serving": {"torch", "torchvision", "onnx", "timm", "tensorrt", "tensorrt_rtx", "dmsh_model", "dmsh_export"},
    "dmsh_model": {"dmsh_export", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "tritonclient"},
    "dmsh_export": {"benchmarks"},
}
# Folders of tests that are about no single module.
KINDS = ("project", "parity", "live", "latency", "gpu", "page", "faults", "scale")
# What proves may read the definition of the integer network and of a model file, and nothing that writes one.
PROVER = "dmsh_export.prove"
PROVER_MAY_IMPORT = (
    "dmsh_export.prove",
    "dmsh_export.graph",
    "dmsh_model.fingerprint.",
    "dmsh_model.integer.",
    "dmsh_serving.contract",
    "dmsh_serving.codes",
    "dmsh_serving.errors",
    "dmsh_serving.files",
    "dmsh_serving.images.framing",
)


def misnamed_tests(folder, known):
    """Return the test files under ``folder`` that are named after nothing: no module, no folder, no kind."""
    wrong = []
    for file in sorted(folder.rglob("test_*.py")):
        room = file.parent.relative_to(folder)
        if room.parts and room.parts[0] in KINDS:
            continue
        dotted = ".".join(room.parts)
        subject = file.stem.removeprefix("test_")
        siblings = {name.rsplit(".", 1)[1] for name in known if name.rpartition(".")[0] == dotted}
        siblings.add(room.parts[-1] if room.parts else "")
        if dotted not in known or not any(
            re.fullmatch(rf"{re.escape(each)}(_\w+)?", subject) for each in siblings if each
        ):
            wrong.append(str(file.relative_to(folder)))
    return wrong


def test_no_folder_holds_more_modules_than_one_can_take_in():
    counts = Counter(file.parent for file in modules().values())
    assert {str(folder.relative_to(ROOT)): n for folder, n in counts.items() if n > MOST_MODULES} == {}


def test_no_file_repeats_the_name_of_its_folder():
    files = [file for file in modules().values() if file.stem not in ("__init__", "__main__")]
    assert [str(file) for file in files if re.search(rf"(^|_){file.parent.name}(_|$)", file.stem)] == []


def test_no_module_imports_in_a_circle():
    assert circles(import_graph(modules())) == []


@pytest.mark.parametrize("package", INSTALLED)
def test_no_folder_imports_in_a_circle(package):
    assert circles(folder_graph(import_graph(modules()), package)) == []


def test_a_circle_through_a_late_import_is_seen(tmp_path):
    (tmp_path / "a.py").write_text("import b\n")
    (tmp_path / "b.py").write_text("def late():\n    from c import thing\n")
    (tmp_path / "c.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a\n")
    files = {name: tmp_path / f"{name}.py" for name in "abc"}
    assert circles(import_graph(files)) == [["a", "b", "c"]]


@pytest.mark.parametrize("package", INSTALLED)
def test_a_package_imports_only_what_its_room_allows(package):
    files = sorted(PACKAGES[package].rglob("*.py"))
    assert files
    found = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in imported(ast.parse(file.read_text()))
        if name.split(".")[0] in FORBIDDEN[package]
    }
    assert not found


def test_the_import_check_sees_an_import_inside_a_function():
    found = list(imported(ast.parse("def f():\n    import torch.nn as nn\n    from onnx import helper")))
    assert found == ["torch.nn", "onnx", "onnx.helper"]


def test_what_proves_imports_nothing_that_writes():
    graph = import_graph(modules())
    reached, waiting = set(), [name for name in graph if name.startswith(PROVER)]
    assert len(waiting) > 3
    while waiting:
        name = waiting.pop()
        if name not in reached and not name.startswith(
            "dmsh_model"
        ):  # the definition; its own imports are not the proof's
            reached.add(name)
            waiting.extend(graph[name])
    assert sorted(name for name in reached if not f"{name}.".startswith(PROVER_MAY_IMPORT)) == []


def test_every_test_file_is_named_after_a_module_or_lies_in_a_folder_for_its_kind():
    assert misnamed_tests(ROOT / "tests", modules().keys()) == []


def test_a_test_file_named_after_nothing_is_seen(tmp_path):
    folder = tmp_path / "dmsh_serving"
    folder.mkdir()
    for name in ("test_codes.py", "test_codes_wide.py", "test_codex.py", "test_other.py"):
        (folder / name).touch()
    found = misnamed_tests(tmp_path, {"dmsh_serving", "dmsh_serving.codes"})
    assert found == ["dmsh_serving/test_codex.py", "dmsh_serving/test_other.py"]
