"""A gallery that is damaged, foreign or of another model is refused, whatever is wrong with it."""

import json
import os

import numpy as np
import pytest
from gallery_files import F, damaged, publish_as_it_is, random_codes, snapshot_path, with_header

from dmsh_serving.errors import InputError
from dmsh_serving.gallery.changes import append, build
from dmsh_serving.gallery.folder import current_version, open_current
from dmsh_serving.gallery.part import Part


def test_fault_13_another_fingerprint_or_bit_count_is_refused_and_both_are_named(folder):
    other = "0" * 64
    with pytest.raises(InputError, match=rf"16 bits, not 64.*{F}, not {other}"):
        open_current(folder, fingerprint=other, bits=64)
    with pytest.raises(InputError, match=f"{F}, not {other}"):
        append(folder, random_codes(1), None, ["x"], fingerprint=other)


def test_fault_11_a_flipped_bit_is_refused_wherever_it_is(folder):
    whole = snapshot_path(folder).read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    for position in [*range(0, header_end, 7), *range(header_end, len(whole), 13), len(whole) - 1]:
        flipped = bytearray(whole)
        flipped[position] ^= 0x10
        damaged(folder, lambda _, flipped=flipped: bytes(flipped))
        with pytest.raises(InputError):
            open_current(folder)
    damaged(folder, lambda _: whole)
    assert open_current(folder).count == 40


def test_fault_11_a_flipped_code_bit_is_refused_by_its_checksum(folder):
    def flip(data):
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        place = start + header["codes"]["data_offsets"][0]
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    damaged(folder, flip)
    with pytest.raises(InputError, match="checksum does not match"):
        open_current(folder)


def test_fault_10_a_file_cut_anywhere_is_refused(folder):
    whole = snapshot_path(folder).read_bytes()
    for length in [*range(0, 40), *range(40, len(whole), 17), len(whole) - 1]:
        damaged(folder, lambda _, length=length: whole[:length])
        with pytest.raises(InputError, match="cannot be used as a gallery"):
            open_current(folder)
    damaged(folder, lambda _: whole + b"\0")
    with pytest.raises(InputError, match="truncated or damaged"):
        open_current(folder)


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a" + bytes(100), b"\xff" * 200, (2).to_bytes(8, "little") + b"{}", bytes(64)]
)
def test_fault_10_a_foreign_file_is_refused(folder, data):
    damaged(folder, lambda _: data)
    with pytest.raises(InputError, match="cannot be used as a gallery"):
        open_current(folder)


def set_entry(name, **values):
    return lambda header: header[name].update(values)


@pytest.mark.parametrize(
    "change",
    [
        set_entry("codes", shape=[2**62, 2**62]),
        set_entry("codes", shape=[2**63, 2]),
        set_entry("codes", shape=[0, 10**30], data_offsets=[0, 0]),
        set_entry("key_offsets", shape=[2**61], data_offsets=[0, 2**64]),
        set_entry("codes", shape=[-40, -2]),
        set_entry("codes", shape=[40, 2.0]),
        set_entry("codes", shape=[True, 80]),
        set_entry("codes", shape=[20, 4]),
        set_entry("codes", shape=[80]),
        set_entry("codes", dtype="F32"),
        set_entry("codes", data_offsets=[0, 80]),
        set_entry("key_offsets", data_offsets="no"),
        set_entry("key_offsets", shape=None),
        set_entry("__metadata__", bits="2000"),
        set_entry("__metadata__", bits="-1"),
        set_entry("__metadata__", bits="²"),
        set_entry("__metadata__", bits="15"),
        set_entry("__metadata__", count="41"),
        set_entry("__metadata__", fingerprint=None),
        set_entry("__metadata__", fingerprint="e" * 64),
        set_entry("__metadata__", format="other"),
        set_entry("__metadata__", format_version="1"),
        set_entry("__metadata__", first_id="-1"),
        set_entry("__metadata__", first_id="101"),
        set_entry("__metadata__", distinct="many"),
        set_entry("__metadata__", base="../etc/passwd"),
        set_entry("__metadata__", base="00000000-aaaaaaaa " + "a" * 64),
        lambda header: header["codes"].update(data_offsets=[at + 1 for at in header["codes"]["data_offsets"]]),
        lambda header: header.pop("codes"),
        lambda header: header.pop("key_offsets"),
        lambda header: header.pop("keys"),
        lambda header: header.update(more={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}),
    ],
)
def test_fault_12_sizes_that_overflow_or_disagree_are_refused_before_allocation(folder, change):
    damaged(folder, with_header(change))
    with pytest.raises(InputError):
        open_current(folder)


@pytest.mark.parametrize("ids", [[1, 1, 2], [2, 1, 3], [-1, 0, 1]])
def test_a_checksummed_file_whose_ids_are_out_of_order_is_refused(folder, ids):
    publish_as_it_is(folder, Part(16, F, random_codes(3), np.array(ids, np.int64)))
    with pytest.raises(InputError, match=r"ascending|negative"):
        open_current(folder)


def test_a_checksummed_file_whose_ids_begin_beyond_the_largest_is_refused_even_when_empty(folder):
    publish_as_it_is(folder, Part(16, F, np.empty((0, 2), np.uint8), first_id=2**63))
    with pytest.raises(InputError, match="not all from 0"):
        open_current(folder)


@pytest.mark.parametrize("text", ["", "00000001", "../../etc/passwd", "x" * 10_000, "\xff\xfe"])
def test_a_damaged_pointer_is_refused(folder, text):
    (folder / "CURRENT").write_text(text)
    with pytest.raises(InputError, match="is damaged"):
        open_current(folder)


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"../../etc/passwd", b"00000009-aaaaaaaa\n"])
def test_a_damaged_pointer_is_mended_by_building_anew(folder, text):
    (folder / "CURRENT").write_bytes(text)
    with pytest.raises(InputError, match="already holds a gallery"):
        build(folder, random_codes(5), None, None, bits=16, fingerprint=F)
    build(folder, random_codes(5), None, None, bits=16, fingerprint=F, overwrite=True)
    assert open_current(folder).count == 5
    assert current_version(folder).startswith("00000002-")


def test_a_pointer_that_is_a_pipe_is_refused_and_not_waited_for(folder):
    (folder / "CURRENT").unlink()
    os.mkfifo(folder / "CURRENT")
    with pytest.raises(OSError, match="not a regular file"):
        current_version(folder)


def test_a_folder_that_is_no_gallery_says_so(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="is not a gallery"):
            open_current(path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be made a gallery"):
        build(tmp_path / "file", random_codes(1), None, None, bits=16, fingerprint=F)


def test_a_pointer_to_a_missing_snapshot_is_refused(folder):
    snapshot_path(folder).unlink()
    with pytest.raises(InputError, match="is missing"):
        open_current(folder)
