"""Tests that run a whole benchmark program: ``make test-programs`` sets DMSH_PROGRAMS=1."""

import os

import pytest


def pytest_collection_modifyitems(items):
    if os.environ.get("DMSH_PROGRAMS") != "1":
        mark = pytest.mark.skip(reason="runs a whole benchmark: make test-programs runs it")
        for item in items:
            if item.get_closest_marker("program"):
                item.add_marker(mark)
