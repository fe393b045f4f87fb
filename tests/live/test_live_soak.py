"""Many clients, a gallery that changes under them. DMSH_SOAK=20000x20 asks 20,000 queries over 20 swaps."""

import os

import pytest
from live_world import World
from soak import Soak

QUERIES, SWAPS = map(int, os.environ.get("DMSH_SOAK", "1500x5").split("x"))


@pytest.fixture(scope="module")
def soak(tmp_path_factory):
    world = World.make(tmp_path_factory.mktemp("soak"))
    with world.server() as server:
        ran = Soak(server, world.gallery, QUERIES, SWAPS)
        ran.run()
    return ran


def test_no_request_fails_and_every_answer_is_the_oracles_for_the_version_it_names(soak):
    queries = sum(len(rows) for rows, *_ in soak.answers)
    print(
        f"{queries:,} queries in {len(soak.answers):,} requests of 4 clients, {len(soak.held) - 1} swaps, "
        f"{len(soak.errors)} errors, {len(soak.wrong())} wrong answers, {soak.seconds:.0f} s"
    )
    assert soak.errors == []
    assert queries >= QUERIES
    assert soak.wrong() == []


def test_every_version_served(soak):
    assert soak.versions_seen() == set(soak.held)
    assert len(soak.held) == SWAPS + 1


def test_the_check_would_see_an_answer_of_another_version(soak):
    """Were the versions of two answers exchanged, the oracle would not agree."""
    rows, k, asked, answer = next(entry for entry in soak.answers if entry[1] >= 50 and not entry[2])
    others = [version for version in soak.held if version != answer.gallery_version[0]]
    right = []
    for version in others:
        answer.gallery_version[:] = version
        right.append(soak._right(rows, k, asked, answer))
    assert not all(right)
