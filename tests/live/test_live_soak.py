"""Many clients, a gallery that changes under them, processes that are killed: ``make soak`` lets it run 20 minutes."""

import os

import pytest
from live_world import World
from soak import Soak

SECONDS = float(os.environ.get("DMSH_SOAK_SECONDS", "20"))
CLIENTS = 16
SWAPS = max(5, round(SECONDS / 20))
KILLS = max(1, round(SECONDS / 30))  # in half of the time
FLAT = 1.1  # times what was held at first; a leak of a long run is far more
MIB = 1 << 20


@pytest.fixture(scope="module")
def soak(tmp_path_factory):
    world = World.make(tmp_path_factory.mktemp("soak"))
    with world.server() as server:
        ran = Soak(server, world.gallery, SECONDS, SWAPS, KILLS, CLIENTS)
        ran.run()
    print(ran.report())
    return ran


def test_fault_48_every_answer_is_the_oracles_for_the_version_it_names_and_no_good_request_fails_but_in_a_kill(soak):
    assert soak.wrong == []
    assert soak.errors == []
    assert soak.answered > 20 * SECONDS
    assert soak.refused > SECONDS
    assert len(soak.away) == KILLS


def test_fault_48_every_version_served(soak):
    assert soak.versions_seen == set(soak.held)
    assert len(soak.held) == SWAPS + 1


def test_fault_48_memory_descriptors_and_shared_memory_stay_flat(soak):
    first, last = soak.samples[0], soak.samples[-1]
    assert first.seconds < 0.75 * last.seconds
    assert last.resident < FLAT * first.resident + 64 * MIB
    assert last.descriptors <= FLAT * first.descriptors + 32
    assert last.launcher_descriptors <= first.launcher_descriptors + 16
    assert last.shared_memory <= FLAT * first.shared_memory + 64 * MIB


def test_the_check_would_see_an_answer_of_another_version(soak):
    """Were the versions of two answers exchanged, the oracle would not agree."""
    rows, k, asked, answer = next(entry for entry in soak.kept if entry[1] >= 50 and not entry[2])
    others = [version for version in soak.held if version != answer.gallery_version[0]]
    right = []
    for version in others:
        answer.gallery_version[:] = version
        right.append(soak.right(rows, k, asked, answer))
    assert not all(right)
