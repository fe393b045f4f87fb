"""The mutants: each is one fault, in a place that runs; the tests of a small package kill those that they look at."""

import dataclasses

import pytest
from benchmarks.mutate import __main__ as command
from benchmarks.mutate.mutants import mutants_of
from benchmarks.mutate.run import Tests
from benchmarks.mutate.subjects import ROOT, SUBJECTS

CODE = '''"""A module."""
from collections.abc import Callable


def limited(value: int | None, most: int = 7, tell: Callable[[], None] = lambda: None) -> int:
    """Return ``value`` or ``most``."""
    check(value)
    if value is None or value > most:
        value = most
    return value


def check(value: int | None) -> None:
    if value == -1:
        raise ValueError("-1")
'''
TESTS = """
import pytest
from small.module import limited

def test_the_limit():
    assert [limited(value) for value in (None, 3, 7, 8)] == [7, 3, 7, 7]

def test_the_check():
    with pytest.raises(ValueError):
        limited(-1)
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "module.py").write_text(CODE)
    (tmp_path / "test_small.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n")
    return tmp_path


def opened(project):
    return Tests(project, project, [project / "small" / "module.py"], ["test_small.py"])


def test_each_mutant_is_one_changed_line_that_runs_and_none_is_in_an_annotation(project):
    mutants = mutants_of(project / "small" / "module.py", seed=0)
    for mutant in mutants:
        pairs = list(zip(CODE.splitlines(), mutant.source.splitlines(), strict=True))
        assert sum(one != other for one, other in pairs) == 1
        assert not mutant.before.startswith('"')
    changed = {(mutant.before, mutant.kind) for mutant in mutants}
    assert ("check(value)", "RemoveStatement") in changed
    assert ('raise ValueError("-1")', "RemoveStatement") in changed
    assert not [mutant for mutant in mutants if mutant.before.startswith("def check")]
    assert mutants == mutants_of(project / "small" / "module.py", seed=0)


def test_what_numba_compiles_is_left_alone(project):
    path = project / "small" / "module.py"
    path.write_text(CODE.replace("def check", '@compiled("void(int64)")\ndef check'))
    assert {mutant.before for mutant in mutants_of(path, seed=0)}.isdisjoint(
        {"if value == -1:", 'raise ValueError("-1")'}
    )


@pytest.mark.program
def test_what_the_tests_look_at_is_killed_and_the_rest_survives(project, monkeypatch):
    monkeypatch.syspath_prepend(project)
    mutants = mutants_of(project / "small" / "module.py", seed=0)
    with opened(project) as tests:
        found = {(mutant.before, mutant.after): tests.of(mutant) for mutant in mutants}
    assert found["check(value)", "pass"].verdict == "killed"
    assert found["check(value)", "pass"].by == "test_small.py::test_the_check"
    assert {outcome.verdict for outcome in found.values()} <= {"killed", "survived"}
    (project / "test_small.py").write_text("from small import module\n\ndef test_nothing():\n    pass\n")
    with opened(project) as blind:
        assert {blind.of(mutant).verdict for mutant in mutants} == {"survived"}
    assert (project / "small" / "module.py").read_text() == CODE


def test_tests_that_fail_without_a_fault_are_refused(project, monkeypatch):
    monkeypatch.syspath_prepend(project)
    (project / "test_small.py").write_text("def test_wrong():\n    assert False\n")
    with pytest.raises(RuntimeError, match=r"fail without any fault: test_small\.py::test_wrong"):
        opened(project)


def test_a_fault_that_runs_at_import_is_found_too(project, monkeypatch):
    monkeypatch.syspath_prepend(project)
    constant = CODE.replace("most: int = 7", "most: int = SEVEN").replace('module."""\n', 'module."""\n\nSEVEN = 7\n')
    (project / "small" / "module.py").write_text(constant)
    mutants = mutants_of(project / "small" / "module.py", seed=0)
    (fault,) = [mutant for mutant in mutants if mutant.before == "SEVEN = 7"]
    with opened(project) as tests:
        assert tests.of(fault).by == "test_small.py::test_the_limit"


def test_a_fault_that_is_no_code_is_broken_and_the_next_one_is_tried(project, monkeypatch):
    monkeypatch.syspath_prepend(project)
    mutants = mutants_of(project / "small" / "module.py", seed=0)
    broken = dataclasses.replace(mutants[0], source="def limited(:\n")
    with opened(project) as tests:
        assert tests.of(broken).verdict == "broken"
        assert "killed" in {tests.of(mutant).verdict for mutant in mutants}


def test_a_fault_in_what_a_fixture_made_is_given_to_every_test_that_uses_it(project, monkeypatch):
    monkeypatch.syspath_prepend(project)
    (project / "test_small.py").write_text(
        "import pytest\nfrom small.module import limited\n\n"
        "@pytest.fixture(scope='module')\ndef made():\n    return limited(8)\n\n"
        "def test_first(made):\n    pass\n\n"
        "def test_second(made):\n    assert made == 7\n\n"
        "def test_none():\n    pass\n"
    )
    path = project / "small" / "module.py"
    with opened(project) as tests:
        line = 1 + CODE.splitlines().index("        value = most")
        assert sorted(tests._reach.tests_of(path, line)) == ["test_small.py::test_first", "test_small.py::test_second"]
        faults = [each for each in mutants_of(path, seed=0) if each.before.startswith("if value is None or")]
        assert {tests.of(fault).by for fault in faults} == {"", "test_small.py::test_second"}


def test_every_package_has_files_and_tests_and_every_reason_names_a_line_that_is_there():
    for subject in SUBJECTS.values():
        assert subject.files()
        assert all((ROOT / path).exists() for path in subject.tests)
    lines = {
        (path.name, line.strip())
        for subject in SUBJECTS.values()
        for path in subject.files()
        for line in path.read_text().splitlines()
    }
    assert [key for key in command.reasons() if key[:2] not in lines] == []
