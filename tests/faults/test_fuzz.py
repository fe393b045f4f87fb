"""Mutated files: a short run of what ``make fuzz`` runs for long, and every input that once broke a reader."""

import pytest
from fuzz import CORPUS, keep, mutated, run, way_of
from fuzz_readers import READERS, Reader

from dmsh_serving.errors import InputError

KEPT = sorted(CORPUS.glob("*.bin"))


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_sound_inputs_are_read_and_mutations_read_or_refused(reader):
    assert {way_of(reader.read, data) for data in reader.seeds()} == {"read"}
    found = run(reader, seconds=1, most=100)
    assert [why for _, why in found.broken] == []
    assert found.executions > 10
    assert len(found.ways) > 1


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_what_once_broke_a_reader_is_read_or_refused(path):
    (reader,) = [reader for reader in READERS if reader.name == path.stem.rpartition("-")[0]]
    way_of(reader.read, path.read_bytes())


def test_a_reader_that_breaks_is_caught_with_its_input(tmp_path, monkeypatch):
    def read(data):
        if len(data) < 3:
            raise InputError("short")
        if b"\xff" in data:
            raise KeyError("odd")

    found = run(Reader("odd", read, lambda: [b"abcdef"]), seconds=20, most=3000)
    ((data, why),) = found.broken
    assert b"\xff" in data
    assert "KeyError" in why
    assert {"read", "KeyError"} <= {way.partition(" ")[0] for way in found.ways}
    monkeypatch.setattr("fuzz.CORPUS", tmp_path)
    assert keep(Reader("odd", read, list), data).read_bytes() == data


def test_the_same_seed_gives_the_same_inputs():
    import random

    def made():
        chance = random.Random(1)
        return [mutated(b"some bytes", [b"others"], chance) for _ in range(50)]

    assert made() == made()
    assert len(set(made())) > 40
