"""A real Triton around the tiny model, one for the whole session; tests that break servers start their own."""

from pathlib import Path

import pytest
from live_world import World

from dmsh_serving.client import SearchClient


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("live")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def server(world):
    with world.server() as running:
        yield running


@pytest.fixture
def client(server):
    with SearchClient(server.url) as connected:
        yield connected
