"""Who may import whom, and what may not be imported before it is needed."""

import ast
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import dmsh_serving

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "dmsh_serving": ROOT / "serving" / "dmsh_serving",
    "dmsh_model": ROOT / "export" / "dmsh_model",
    "dmsh_export": ROOT / "export" / "dmsh_export",
}
FORBIDDEN = {
    "dmsh_serving": {"torch", "torchvision", "onnx", "timm", "tensorrt", "tensorrt_rtx", "dmsh_model", "dmsh_export"},
    "dmsh_model": {"dmsh_export", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "tritonclient"},
    "dmsh_export": set(),
}
COMMANDS = ("dmsh-train", "dmsh-export", "dmsh-serve")


def imported(tree):
    """Every module named by an import statement anywhere in a file, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_its_room_allows(package):
    files = sorted(PACKAGES[package].glob("**/*.py"))
    assert files
    found = {
        f"{file.name} imports {name}"
        for file in files
        for name in imported(ast.parse(file.read_text()))
        if name in FORBIDDEN[package]
    }
    assert not found


def test_the_import_check_sees_an_import_inside_a_function():
    assert list(imported(ast.parse("def f():\n    import torch.nn as nn\n    from onnx import helper"))) == [
        "torch",
        "onnx",
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_answers_before_a_heavy_package_is_imported(command):
    package = {"dmsh-train": "dmsh_model", "dmsh-export": "dmsh_export", "dmsh-serve": "dmsh_serving"}[command]
    program = (
        f"import sys; import {package}.cli; "
        "print([name for name in ('torch', 'onnx', 'onnxruntime', 'numba', 'tritonclient', 'timm', 'scipy', 'rich')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_version_is_stated_once():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in pyproject["project"]
    source = ROOT / pyproject["tool"]["hatch"]["version"]["path"]
    assert source == Path(dmsh_serving.__file__)
    assert metadata.version("dmsh-toolkit") == dmsh_serving.__version__
