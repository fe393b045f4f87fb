"""What the code imports is what pyproject.toml declares."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

from project import ROOT
from sources import INSTALLED, PACKAGES, imported

COME_WITH_OTHERS = {
    "triton_python_backend_utils",
    "llvmlite",
    "grpc",
}  # Triton's Python backend, numba, tritonclient[grpc]


def test_every_package_that_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    requirements = [*project["dependencies"], *(requirement for extra in extras for requirement in extra)]
    declared = {plain_name(re.split(r"[\[<>=~! ]", requirement)[0]) for requirement in requirements}
    files = [file for package in INSTALLED for file in PACKAGES[package].rglob("*.py")]
    names = {name for file in files for name in {full.split(".")[0] for full in imported(ast.parse(file.read_text()))}}
    foreign = names - set(sys.stdlib_module_names) - set(PACKAGES) - COME_WITH_OTHERS
    distributions = packages_distributions()
    undeclared = {
        name
        for name in foreign
        if not declared.intersection(plain_name(found) for found in distributions.get(name, [name]))
    }
    assert len(foreign) > 10
    assert undeclared == set()


def plain_name(distribution):
    return distribution.lower().replace("_", "-")
