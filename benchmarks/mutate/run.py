"""Mutants and tests -> which mutants the tests kill.

A process imports the package and collects its tests once. A first run without a fault notes which tests reach which
function (:mod:`benchmarks.mutate.reach`). Each mutant then runs in a fork: there the function is given its mutated
code, and the tests that reach it run, the fastest first, up to the first that fails. A fault in a line that runs at
import needs a process of its own. The fault exists in memory alone: the file stays as it is.
"""

import contextlib
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Literal

import pytest

from benchmarks.mutate.mutants import Mutant
from benchmarks.mutate.reach import Reach, Watch, outermost

__all__ = ["Outcome", "Tests", "Verdict", "import_large"]

Verdict = Literal["killed", "timed out", "survived", "broken"]
_PATIENCE: Final = 5  # times the tests without a fault; a mutant that takes longer is in an endless loop
_LEAST_SECONDS: Final = 30.0
_MOST_SECONDS: Final = 120.0
_LONGEST: Final = 3600.0  # for the tests without a fault
_fork: Final = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant, and the first test that failed; ``broken`` if its module cannot even be imported."""

    verdict: Verdict
    by: str = ""
    seconds: float = 0.0


class Tests:
    """The tests of a package: ``with Tests(root, module_root, files, arguments) as tests: tests.of(mutant)``.

    Args:
        root: of the project; pytest runs there.
        packages: the folder that the package's dotted name starts from.
        files: the modules that will be mutated.
        arguments: what to give pytest.

    Raises:
        RuntimeError: the tests fail without any fault.
    """

    __test__ = False

    def __init__(self, root: Path, packages: Path, files: Sequence[Path], arguments: Sequence[str]) -> None:
        self._root, self._packages, self._files, self._arguments = root, packages, files, arguments
        start = time.monotonic()
        self._collected = _Collected(self, None)
        verdict, by, reach = self._collected.run(None, None, _LONGEST)
        self._reach: Reach = reach or Reach()
        if verdict == "survived":  # and in the order in which a mutant gets them
            verdict, by, _ = self._collected.run(None, self._reach.fastest(), _LONGEST)
        if verdict != "survived":
            self._collected.close()
            raise RuntimeError(f"the tests fail without any fault: {by or verdict}")
        self.seconds = time.monotonic() - start

    def __enter__(self) -> "Tests":
        return self

    def __exit__(self, *_: object) -> None:
        self._collected.close()

    def of(self, mutant: Mutant) -> Outcome:
        """Return what the tests say of ``mutant``; it survives at once if none reaches it."""
        start = time.monotonic()
        tests = self._reach.tests_of(mutant.path, mutant.line)
        if not tests:
            return Outcome("survived")
        limit = min(_MOST_SECONDS, max(_LEAST_SECONDS, _PATIENCE * sum(self._reach.seconds[test] for test in tests)))
        verdict, by, _ = self._collected.run(mutant, tests, limit)
        if verdict == "at import":
            with contextlib.closing(_Collected(self, mutant)) as alone:
                verdict, by, _ = alone.run(None, tests, limit)
        return Outcome(verdict, by, time.monotonic() - start)

    def module_of(self, path: Path) -> str:
        """Return the dotted name of a file."""
        return ".".join(path.relative_to(self._packages).with_suffix("").parts)

    def collect(self, mutant: Mutant | None, loop: "_Loop") -> None:
        """Import the package, with the fault of ``mutant``; collect the tests and give them to ``loop``."""
        os.chdir(self._root)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        if mutant is not None:
            sys.meta_path.insert(0, _Finder(self.module_of(mutant.path), mutant))
        try:
            for path in self._files:
                importlib.import_module(self.module_of(path))
        except BaseException as error:  # whatever a fault does at import
            loop.refuse("broken", f"{type(error).__name__}: {error}")
            return
        watch = Watch(self._packages)
        code = pytest.main(["-q", "-s", "-p", "no:cacheprovider", *self._arguments], plugins=[loop, watch])
        loop.refuse("killed", f"the tests cannot be collected: exit code {int(code)}")  # else it has answered


class _Collected:
    """A process that has collected the tests, with the fault of ``mutant`` at import."""

    def __init__(self, tests: Tests, mutant: Mutant | None) -> None:
        self._here, there = _fork.Pipe()
        self._process = _fork.Process(target=tests.collect, args=(mutant, _Loop(there)))
        self._process.start()
        there.close()

    def run(self, mutant: Mutant | None, tests: Sequence[str] | None, limit: float) -> tuple[Any, str, Reach | None]:
        """Return what ``tests`` (None: all, noting their reach) say, which failed, and the reach."""
        try:
            self._here.send((mutant, tests, limit))
            answer: tuple[Any, str, Reach | None] = self._here.recv()
        except (EOFError, OSError):
            return "killed", "the process ended", None
        return answer

    def close(self) -> None:
        self._here.close()
        self._process.kill()
        self._process.join()


class _Loop:
    """A plugin of pytest in place of its loop: runs the tests that it is told by the pipe, each time in a fork."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._failed = pipe, ""

    def refuse(self, verdict: Verdict, why: str) -> None:
        """Answer so, whatever is asked."""
        with contextlib.suppress(EOFError, OSError):
            self._pipe.recv()
            self._pipe.send((verdict, why, None))

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Answer until nobody asks any more."""
        if session.testsfailed:
            return False
        functions = list(_functions())
        gc.freeze()
        with contextlib.suppress(EOFError):
            while True:
                mutant, tests, limit = self._pipe.recv()
                code = None if mutant is None else _swap(mutant, functions)
                at_import = mutant is not None and code is None
                self._pipe.send(("at import", "", None) if at_import else self._forked(session, code, tests, limit))
        os._exit(0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self._failed:
            self._failed = report.nodeid

    def _forked(
        self, session: pytest.Session, change: Callable[[], None] | None, tests: Sequence[str] | None, limit: float
    ) -> tuple[Verdict, str, Reach | None]:
        here, there = _fork.Pipe(duplex=False)
        with tempfile.TemporaryDirectory(prefix="mutant-", ignore_cleanup_errors=True) as scratch:
            os.environ["PYTEST_DEBUG_TEMPROOT"] = scratch  # the tests' tmp_path
            child = _fork.Process(target=self._child, args=(session, change, tests, there))
            child.start()
            there.close()
            try:
                return here.recv() if here.poll(limit) else ("timed out", "", None)
            except EOFError:
                return "killed", "the process ended", None
            finally:
                child.kill()
                child.join()

    def _child(
        self,
        session: pytest.Session,
        change: Callable[[], None] | None,
        tests: Sequence[str] | None,
        out: Connection,
    ) -> None:
        if change is not None:
            change()
        watch = next(plugin for plugin in session.config.pluginmanager.get_plugins() if isinstance(plugin, Watch))
        if tests is None:
            watch.begin()
        order = {test: place for place, test in enumerate(tests or [])}
        items = [item for item in session.items if tests is None or item.nodeid in order]
        items.sort(key=lambda item: order.get(item.nodeid, 0))
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self._failed:
                break
        out.send(("killed" if self._failed else "survived", self._failed, watch.reach() if tests is None else None))


def _functions() -> Iterator[types.FunctionType]:
    return (each for each in gc.get_objects() if isinstance(each, types.FunctionType))


def _swap(mutant: Mutant, functions: Sequence[types.FunctionType]) -> Callable[[], None] | None:
    """Return what gives the function around a fault its mutated code; None if the fault is in none, or is no code."""
    try:
        before, after = (
            list(_codes(compile(source, str(mutant.path), "exec", dont_inherit=True)))
            for source in (mutant.path.read_text(), mutant.source)
        )
    except SyntaxError:  # which its import will say
        return None
    whole = next((whole for whole, body in outermost(mutant.path) if mutant.line in body), None)
    if whole is None or len(before) != len(after):
        return None
    # Before the function's own code comes that of its defaults, of which a lambda has code too.
    mine = (pair for pair in zip(before, after, strict=True) if pair[0].co_firstlineno in whole)
    old, new = next(pair for pair in mine if not pair[0].co_name.startswith("<"))
    place = (old.co_filename, old.co_firstlineno, old.co_qualname)
    found = [
        each
        for each in functions
        if (each.__code__.co_filename, each.__code__.co_firstlineno, each.__code__.co_qualname) == place
    ]
    if not found or old.co_freevars != new.co_freevars:
        return None

    def change() -> None:
        for each in found:
            each.__code__ = new

    return change


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield each code object inside of another, from the outside to the inside."""
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield inner
            yield from _codes(inner)


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
