"""What documents and workflows name is there: files, commands, options, make targets, extras, versions."""

import re
import shlex
import tomllib
from importlib import import_module

import pytest
import typer
import yaml
from project import ROOT

import dmsh_serving

MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
SOURCES = ("export", "serving", "tests", "benchmarks", "website", "model_repository")
PAGES = sorted([*(ROOT / name for name in TOP), *(ROOT / "docs").rglob("*.md")])
YAML = sorted(
    [ROOT / "CITATION.cff", ROOT / "mkdocs.yml", ROOT / ".pre-commit-config.yaml", *(ROOT / ".github").rglob("*.yml")]
)
_MODULE = re.compile(r"`([\w/]+\.py)`")
_PATH = re.compile(r"`((?:export|serving|tests|benchmarks|website|docs|experiments|\.github)/[\w./-]+)`")


def targets(makefile):
    """Return the names that ``make`` knows."""
    return set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))


def made(text):
    """Return every target that ``text`` asks make for, in code or alone on a line."""
    return set(re.findall(r"(?:`|^|run: )make ([a-z][\w-]*)", text, re.MULTILINE))


def commands(text):
    """Return the lines of a page that run one of our commands, comments and continuations resolved."""
    blocks = re.findall(r"```(?:sh)?\n(.*?)```", text, re.DOTALL) + re.findall(r"((?:^    .*\n)+)", text, re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if re.match(r"dmsh-(train|export|serve) ", line)]


def unknown_options(line):
    """Return what a command line names that its command does not have."""
    words = shlex.split(line, comments=True)
    package = {"dmsh-train": "dmsh_model", "dmsh-export": "dmsh_export", "dmsh-serve": "dmsh_serving"}[words[0]]
    command = typer.main.get_command(import_module(f"{package}.cli").app)
    rest = words[1:]
    while hasattr(command, "commands"):
        if not rest or rest[0] not in command.commands:
            return [f"{line}: no command {' '.join(rest[:1])}"]
        command = command.commands[rest.pop(0)]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help", "-h", "--debug", "..."}
    return [f"{line}: no option {word}" for word in rest if re.match(r"--?[a-zA-Z]", word) and word not in known]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_there(page):
    assert [path for path in _PATH.findall(page.read_text()) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_module_that_a_page_names_is_there(page):
    files = [f"/{file.relative_to(ROOT)}" for top in SOURCES for file in (ROOT / top).rglob("*.py")]
    named = [name for name in _MODULE.findall(page.read_text()) if "NAME" not in name]
    assert [name for name in named if not any(file.endswith(f"/{name}") for file in files)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_a_page_shows_exists_with_its_options(page):
    assert [problem for line in commands(page.read_text()) for problem in unknown_options(line)] == []


def test_a_command_or_an_option_that_does_not_exist_is_seen():
    assert commands("text\n\n    dmsh-serve start --repository R  # on loopback\n") != []
    assert unknown_options("dmsh-serve start --repository R  # --nothing") == []
    assert unknown_options("dmsh-serve start --repozitory R") == [
        "dmsh-serve start --repozitory R: no option --repozitory"
    ]
    assert unknown_options("dmsh-serve gallery burn G") == ["dmsh-serve gallery burn G: no command burn"]


@pytest.mark.parametrize("file", [*PAGES, *YAML], ids=lambda file: str(file.relative_to(ROOT)))
def test_make_knows_every_target_that_a_page_or_a_workflow_names(file):
    assert made(file.read_text()) <= targets(MAKEFILE)


def test_a_target_that_make_does_not_know_is_seen():
    assert made("- run: make tea\n") - targets("test: check\n") == {"tea"}


@pytest.mark.parametrize("file", YAML, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_yaml_file_can_be_read(file):
    assert yaml.safe_load(file.read_text())


def test_the_workflow_lints_tests_on_both_ends_of_python_and_tries_the_wheel():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    runs = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert runs["lint"] == ["make check"]
    assert runs["test"] == ["make test"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    assert runs["wheel"] == ["make test-wheel"]
    classifiers = {line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if "Python :: 3." in line}
    assert classifiers == {"3.11", "3.12", "3.13"}
    assert PROJECT["requires-python"] == ">=3.11"


def test_every_extra_that_a_page_or_an_error_names_is_declared():
    sources = [*PAGES, *(ROOT / "serving").rglob("*.py"), *(ROOT / "export").rglob("*.py")]
    named = {extra for file in sources for found in re.findall(r"dmsh-toolkit\[([\w,-]+)\]", file.read_text())
             for extra in found.split(",")}  # fmt: skip
    assert len(named) > 3
    assert named <= PROJECT["optional-dependencies"].keys()


def test_the_citation_and_the_changelog_name_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == dmsh_serving.__version__
    newest = re.findall(r"^## \[(\d[\d.]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert newest == dmsh_serving.__version__
