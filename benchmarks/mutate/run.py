"""Mutants and tests -> which mutants the tests kill.

Each mutant runs in a fork of a process that has imported the large libraries, so it costs its tests and no start. The
fault exists in the fork's memory alone: the file stays as it is.
"""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import multiprocessing
import os
import sys
import time
import types
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Literal

import pytest

from benchmarks.mutate.mutants import Mutant

__all__ = ["Outcome", "Tests", "Verdict"]

Verdict = Literal["killed", "timed out", "survived", "broken"]
_PATIENCE: Final = 3  # times the tests without a fault; a mutant that takes longer is in an endless loop
_LEAST_SECONDS: Final = 20.0


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant, and the first test that failed; ``broken`` if its module cannot even be imported."""

    verdict: Verdict
    by: str = ""
    seconds: float = 0.0


class Tests:
    """The tests of a package: ``Tests(root, module_root, paths).of(mutant)`` runs them, the fastest first.

    Args:
        root: of the project; pytest runs there.
        packages: the folder that the package's dotted name starts from.
        paths: what to give pytest.

    Raises:
        RuntimeError: the tests fail without any fault.
    """

    __test__ = False

    def __init__(self, root: Path, packages: Path, paths: Sequence[str]) -> None:
        self._root, self._packages, self._paths = root, packages, list(paths)
        self._durations: dict[str, float] = {}
        self._limit = float("inf")
        start = time.monotonic()
        whole = self._forked(None)
        if whole.verdict != "survived":
            raise RuntimeError(f"the tests fail without any fault: {whole.by or whole.verdict}")
        self.seconds = time.monotonic() - start
        self._limit = max(_LEAST_SECONDS, _PATIENCE * self.seconds)

    def of(self, mutant: Mutant) -> Outcome:
        """Return what the tests say of ``mutant``."""
        return self._forked(mutant)

    def _forked(self, mutant: Mutant | None) -> Outcome:
        start = time.monotonic()
        here, there = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(target=self._child, args=(mutant, there))
        child.start()
        there.close()
        try:
            verdict, by, durations = here.recv() if here.poll(min(self._limit, 3600)) else ("timed out", "", {})
        except EOFError:
            verdict, by, durations = "killed", "the process ended", {}
        if mutant is None:
            self._durations = durations
        child.kill()
        child.join()
        return Outcome(verdict, by, time.monotonic() - start)

    def _child(self, mutant: Mutant | None, out: Connection) -> None:
        os.chdir(self._root)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        if mutant is not None:
            name = ".".join(mutant.path.relative_to(self._packages).with_suffix("").parts)
            sys.meta_path.insert(0, _Finder(name, mutant))
            try:
                importlib.import_module(name)
            except BaseException as error:  # whatever a fault does at import
                out.send(("broken", f"{type(error).__name__}: {error}", {}))
                return
        noted = _Noted(self._durations)
        code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly", *self._paths], plugins=[noted])
        # 2: a module of the tests itself fails to import, which is a failure too.
        verdict = "survived" if code == 0 else "killed"
        out.send((verdict, noted.failed or f"exit code {int(code)}" * (code != 0), noted.durations))


class _Noted:
    """A plugin of pytest: the fastest tests first, and which one failed."""

    def __init__(self, known: dict[str, float]) -> None:
        self._known, self.durations, self.failed = known, {}, ""  # type: tuple[dict[str, float], dict[str, float], str]

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self._known.get(item.nodeid, 0.0))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.durations[report.nodeid] = self.durations.get(report.nodeid, 0.0) + report.duration
        if report.failed and not self.failed:
            self.failed = report.nodeid


class _Finder(importlib.abc.MetaPathFinder):
    """Gives one module its mutated source, in memory."""

    def __init__(self, name: str, mutant: Mutant) -> None:
        self._name, self._mutant = name, mutant

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        loader = _Loader(name, str(self._mutant.path))
        loader.source = self._mutant.source
        return importlib.util.spec_from_file_location(name, self._mutant.path, loader=loader)


class _Loader(importlib.machinery.SourceFileLoader):
    source: str

    def get_code(self, fullname: str) -> Any:
        return compile(self.source, self.path, "exec", dont_inherit=True)


def import_large(names: Sequence[str]) -> None:
    """Import large libraries now, so that no fork has to; one that is not installed is left to whoever needs it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork has none of its parent's threads
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
