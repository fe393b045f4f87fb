"""What may not be imported before it is needed; tests/project/test_layout.py says who may import whom."""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from project import ROOT

import dmsh_serving

COMMANDS = ("dmsh-train", "dmsh-export", "dmsh-serve")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_answers_before_a_heavy_package_is_imported(command):
    package = {"dmsh-train": "dmsh_model", "dmsh-export": "dmsh_export", "dmsh-serve": "dmsh_serving"}[command]
    program = (
        f"import sys; import {package}.cli; "
        "print([name for name in ('torch', 'numpy', 'PIL', 'onnx', 'onnxruntime', 'numba', 'tritonclient', 'timm',"
        " 'scipy', 'rich', 'starlette', 'uvicorn')"
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
