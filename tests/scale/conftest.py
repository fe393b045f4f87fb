"""Tests that take minutes: ``make test-scale`` sets DMSH_SCALE=1."""

import os

import pytest


def pytest_collection_modifyitems(items):
    if os.environ.get("DMSH_SCALE") != "1":
        mark = pytest.mark.skip(reason="takes minutes: make test-scale runs it")
        for item in items:
            if "tests/scale" in item.path.as_posix():
                item.add_marker(mark)
