import time

import numpy as np
import pytest
import tiny_model

from dmsh_serving import gallery
from dmsh_serving.contract import MAX_K, PAD_DISTANCE, PAD_ID
from dmsh_serving.errors import InputError
from dmsh_serving.hamming_oracle import search_oracle as oracle
from dmsh_serving.ranker import Ranker

CODES = tiny_model.codes_of(tiny_model.random_images(50))
SPACE = {"bits": tiny_model.BITS, "fingerprint": tiny_model.FINGERPRINT}


def publish(folder, codes=CODES, **changes):
    keys = [f"key-{number}" for number in range(len(codes))]
    return gallery.build(folder, codes, None, keys, overwrite=True, **{**SPACE, **changes}).version


@pytest.fixture
def folder(tmp_path):
    publish(tmp_path / "gallery")
    return tmp_path / "gallery"


@pytest.fixture
def ranker(folder):
    with Ranker(folder, **SPACE, poll_seconds=0.01) as opened:
        yield opened


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 10 s"
        time.sleep(0.005)


def test_answers_equal_the_oracle_and_carry_keys_and_version(ranker):
    found = ranker.search(CODES[:7], 5)
    distances, rows = oracle(CODES[:7], CODES, 5)
    np.testing.assert_array_equal(found.distances, distances)
    np.testing.assert_array_equal(found.ids, rows)
    assert found.keys.tolist() == [[f"key-{row}" for row in line] for line in rows.tolist()]
    assert found.gallery_version == ranker.version


def test_more_than_the_gallery_holds_is_padded(ranker):
    found = ranker.search(CODES[:2], 60)
    assert (found.ids[:, 50:] == PAD_ID).all()
    assert (found.distances[:, 50:] == PAD_DISTANCE).all()
    assert (found.keys[:, 50:] == "").all()


def test_no_codes_give_no_answers(ranker):
    assert ranker.search(CODES[:0], 5).ids.shape == (0, 5)


@pytest.mark.parametrize("k", [0, -1, MAX_K + 1])
def test_k_out_of_range_is_refused(ranker, k):
    with pytest.raises(InputError, match=f"k = {k} is out of range: ask for 1 to {MAX_K}"):
        ranker.search(CODES[:1], k)


@pytest.mark.parametrize("changes", [{"bits": 60}, {"fingerprint": "cd" * 32}])
def test_a_gallery_of_another_code_space_is_refused(folder, changes):
    with pytest.raises(InputError, match="belongs to another model"):
        Ranker(folder, **{**SPACE, **changes})


def test_a_new_version_is_swapped_in(ranker, folder):
    version = publish(folder, CODES[:10])
    wait_until(lambda: ranker.version == version)
    assert ranker.search(CODES[:1], 11).ids[0, 10] == PAD_ID


@pytest.mark.parametrize("breakage", ["flipped bit", "other fingerprint", "pointer", "no pointer", "cut short"])
def test_a_broken_new_version_is_counted_once_and_the_old_one_serves(folder, breakage, caplog):
    counted = []
    with Ranker(folder, **SPACE, poll_seconds=0.01, on_failed_swap=lambda: counted.append(1)) as ranker:
        serving = ranker.version
        break_gallery(folder, breakage)
        wait_until(lambda: ranker.failed_swaps)
        time.sleep(0.1)
        assert (ranker.failed_swaps, counted) == (1, [1])
        assert ranker.search(CODES[:1], 1).gallery_version == serving
        assert f"version {serving} goes on serving" in caplog.text
        (folder / gallery.CURRENT).unlink(missing_ok=True)  # a writer refuses a damaged pointer too
        mended = publish(folder, CODES[:20])
        wait_until(lambda: ranker.version == mended)


def break_gallery(folder, breakage):
    if breakage == "pointer":
        (folder / gallery.CURRENT).write_text("../../etc/passwd\n")
    elif breakage == "no pointer":
        (folder / gallery.CURRENT).unlink()
    elif breakage == "other fingerprint":
        publish(folder, fingerprint="cd" * 32)
    else:
        # A later version appears already damaged, as a copy of a bad disk would.
        current = folder / f"gallery-{gallery.current_version(folder)}.safetensors"
        content = bytearray(current.read_bytes())
        if breakage == "flipped bit":
            content[-1] ^= 1
        else:
            del content[-10:]
        (folder / "gallery-00000009-00000000.safetensors").write_bytes(content)
        (folder / gallery.CURRENT).write_text("00000009-00000000\n")
