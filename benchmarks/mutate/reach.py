"""Which tests reach which functions: a run of the tests that notes every call.

What a fixture calls counts for every test that uses it, since the fixture may outlive the test that it was made for. A
helper that keeps a result from an earlier test counts for that earlier test alone: some tests that could find a fault
are then not asked, so the share that is found is a lower bound.
"""

import ast
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

__all__ = ["Reach", "Watch", "outermost"]

Place = tuple[str, int]  # a file, the first line of a function in it


@dataclass
class Reach:
    """``seconds`` of each test; the ``places`` that each one calls, and those ``before`` any test: at import."""

    seconds: dict[str, float] = field(default_factory=dict)
    places: dict[str, set[Place]] = field(default_factory=dict)
    before: set[Place] = field(default_factory=set)

    def fastest(self) -> list[str]:
        """Return all tests, the fastest first."""
        return sorted(self.seconds, key=lambda test: self.seconds[test])

    def tests_of(self, path: Path, line: int) -> list[str]:
        """Return the tests that a fault in ``line`` may change, the fastest first."""
        fastest = self.fastest()
        whole = next((whole for whole, body in outermost(path) if line in body), None)
        if whole is None:
            return fastest  # the line runs at import
        inside = {(str(path), first) for first in whole}
        return fastest if inside & self.before else [test for test in fastest if inside & self.places[test]]


class Watch:
    """A plugin of pytest that makes a :class:`Reach` of the calls into modules under ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = f"{folder}/"
        self._before: set[Place] = set()
        self._now = self._before
        self._own: dict[str, set[Place]] = defaultdict(set)
        self._of_fixtures: dict[str, set[Place]] = defaultdict(set)
        self._fixtures: dict[str, list[str]] = {}
        self._seconds: dict[str, float] = defaultdict(float)
        self._on = False
        sys.settrace(self._called)  # what runs at import

    def begin(self) -> None:
        """Note what tests reach, from now on."""
        self._on = True
        threading.settrace(self._called)

    def reach(self) -> Reach:
        """Return what was noted so far."""
        places = {
            test: own.union(*(self._of_fixtures[name] for name in self._fixtures[test]))
            for test, own in self._own.items()
        }
        return Reach(dict(self._seconds), places, self._before)

    def _called(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if code.co_filename.startswith(self._folder):
            self._now.add((code.co_filename, code.co_firstlineno))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Note what this test calls."""
        self._now = self._own[item.nodeid]
        self._fixtures[item.nodeid] = list(getattr(item, "fixturenames", ()))
        sys.settrace(self._called if self._on else None)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
        """Note what this fixture calls."""
        outer, self._now = self._now, self._of_fixtures[fixturedef.argname]
        try:
            return (yield)
        finally:
            self._now = outer

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how long a test takes."""
        self._seconds[report.nodeid] += report.duration


@cache
def outermost(path: Path) -> list[tuple[range, range]]:
    """Return the lines of each function that is in no other one, and those of its body."""

    def found(body: list[ast.stmt]) -> Iterator[tuple[range, range]]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min(each.lineno for each in (node, *node.decorator_list))
                end = (node.end_lineno or node.lineno) + 1
                yield range(first, end), range(node.body[0].lineno, end)
            elif isinstance(node, ast.ClassDef):
                yield from found(node.body)

    return list(found(ast.parse(path.read_text()).body))
