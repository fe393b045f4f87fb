import time

import numpy as np
import pytest
import tiny_model

from dmsh_serving import gallery
from dmsh_serving.contract import MAX_FILTER_IDS, MAX_K, MAX_RESULTS, PAD_DISTANCE, PAD_ID
from dmsh_serving.errors import InputError
from dmsh_serving.gallery.snapshot import Snapshot
from dmsh_serving.hamming.oracle import search_oracle as oracle
from dmsh_serving.ranker.asks import Ask
from dmsh_serving.ranker.follower import Ranker, RankerEvents

IMAGES = tiny_model.random_images(50)
CODES = tiny_model.codes_of(IMAGES)
SPACE = {"bits": tiny_model.BITS, "fingerprint": tiny_model.FINGERPRINT}


def publish(folder, codes=CODES, **changes):
    keys = [f"key-{number}" for number in range(len(codes))]
    return gallery.build(folder, codes, None, keys, overwrite=True, **{**SPACE, **changes}).version


class Noted(RankerEvents):
    """Notes what a ranker tells."""

    def __init__(self):
        self.served, self.refusals, self.queries, self.reports = [], 0, 0, 0
        self.named = []

    def serving(self, snapshot, swapped):
        self.served.append((snapshot.version, snapshot.count, swapped))

    def wanted(self, version):
        self.named.append(version)

    def refused(self):
        self.refusals += 1

    def ranked(self, queries):
        self.queries += queries

    def report(self):
        self.reports += 1


@pytest.fixture
def folder(tmp_path):
    publish(tmp_path / "gallery")
    return tmp_path / "gallery"


@pytest.fixture
def ranker(folder):
    with Ranker(folder, **SPACE, poll_seconds=0.01) as opened:
        yield opened


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 60 s"
        time.sleep(0.005)


def test_a_version_that_is_taken_back_is_wanted_no_more(folder):
    events, absent = Noted(), "00000009-aaaaaaaa"
    with Ranker(folder, **SPACE, poll_seconds=0.01, events=events) as ranker:
        (folder / "CURRENT").write_text(f"{absent}\n")
        wait_until(lambda: events.refusals)
        (folder / "CURRENT").write_text(f"{ranker.version}\n")
        wait_until(lambda: len(events.named) == 3)
        assert events.named == [ranker.version, absent, ranker.version]


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


def test_more_results_than_a_request_may_ask_for_are_refused(ranker):
    assert ranker.search(np.repeat(CODES[:1], 4, axis=0), MAX_K).ids.shape == (4, MAX_K)
    assert 4 * MAX_K == MAX_RESULTS
    with pytest.raises(InputError, match=r"^5 codes with k = 16384 are 81920 results.* 65536, so send at most 4 codes"):
        ranker.search(np.repeat(CODES[:1], 5, axis=0), MAX_K)


def test_a_radius_and_a_filter_of_each_query_keep_what_they_say(ranker):
    filters = np.array([[40, 7, 7, 999], [3, PAD_ID, PAD_ID, PAD_ID], [PAD_ID] * 4])
    found = ranker.search(CODES[:3], 2, filters=filters)
    for row, allowed in enumerate(([7, 40], [3], [])):
        distances, rows = oracle(CODES[row : row + 1], CODES[allowed], 2)
        np.testing.assert_array_equal(found.ids[row], np.append(allowed, PAD_ID)[rows[0]])
        np.testing.assert_array_equal(found.distances[row], distances[0])
    distances, rows = oracle(CODES[:1], CODES, 50)
    radius = int(distances[0, 10])
    within = int((distances <= radius).sum())
    found = ranker.search(CODES[:1], 50, radius=radius)
    np.testing.assert_array_equal(found.ids[0, :within], rows[0, :within])
    assert (found.ids[0, within:] == PAD_ID).all()
    assert (found.distances[0, within:] == PAD_DISTANCE).all()
    assert found.keys[0, within:].tolist() == [""] * (50 - within)


def test_logits_order_those_at_equal_distance_and_change_nothing_else(ranker):
    logits = tiny_model.logits_of(IMAGES).astype(np.float32)
    bits = np.unpackbits(CODES, axis=1).astype(np.int64)
    plain = ranker.search(CODES[:9], 12, radius=30)
    found = ranker.search(CODES[:9], 12, radius=30, logits=logits[:9])
    for row in range(9):
        nearest = [number for number in plain.ids[row].tolist() if number != PAD_ID]
        weighted = {number: (np.abs(logits[row]) * (bits[row] != bits[number])).sum() for number in nearest}
        given = dict(zip(plain.ids[row].tolist(), plain.distances[row].tolist(), strict=True))
        expected = sorted(nearest, key=lambda number: (given[number], weighted[number], number))
        assert found.ids[row, : len(expected)].tolist() == expected
        assert (found.ids[row, len(expected) :] == PAD_ID).all()
        assert found.distances[row].tolist() == plain.distances[row].tolist()
        assert found.keys[row].tolist() == [f"key-{number}" if number != PAD_ID else "" for number in found.ids[row]]
    assert (found.ids != plain.ids).any()


def test_asks_of_any_kind_are_answered_as_if_alone_and_share_scans(ranker, monkeypatch):
    scans = []
    search = Snapshot.search

    def counted(self, queries, k, **options):
        scans.append((len(queries), k))
        return search(self, queries, k, **options)

    monkeypatch.setattr(Snapshot, "search", counted)
    allowed = np.array([[1, 2, 3, 4]])
    asks = [
        Ask(CODES[:2], 3),
        Ask(CODES[2:3], 2, radius=20),
        Ask(CODES[:0], 5),
        Ask(CODES[3:4], 1, filters=allowed),
        Ask(CODES[4:6], 3, filters=np.array([[1, 2, 3, 4, PAD_ID], [5, PAD_ID, PAD_ID, PAD_ID, PAD_ID]])),
        Ask(CODES[6:7], np.int64(1000)),
        Ask(CODES[6:7], 3, logits=tiny_model.logits_of(IMAGES[6:7]).astype(np.float32)),
    ]
    together = ranker.rank(asks)
    assert sorted(scans) == [(1, 3), (1, 1000), (2, 3), (4, 3)]
    for ask, answer in zip(asks, together, strict=True):
        alone = ranker.search(ask.codes, ask.k, radius=ask.radius, filters=ask.filters, logits=ask.logits)
        np.testing.assert_array_equal(answer.ids, alone.ids)
        np.testing.assert_array_equal(answer.distances, alone.distances)
        np.testing.assert_array_equal(answer.keys, alone.keys)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"radius": -1}, "radius = -1 is out of range"),
        ({"filters": np.array([[-2]])}, "filter has id -2"),
        ({"filters": np.array([[1], [2]])}, r"filter must be int64 \[1, F\], got int64 \[2, 1\]"),
        ({"filters": np.array([[1]], np.int32)}, "filter must be int64"),
        ({"logits": np.zeros((1, 63), np.float32)}, r"logits must be float32 \[1, 64\], got float32 \[1, 63\]"),
        ({"logits": np.zeros((1, 64), np.float32)}, "the logits give other codes"),
        ({"logits": np.full((1, 64), np.nan, np.float32)}, "NaN"),
        ({"filters": np.zeros((1, MAX_FILTER_IDS + 1), np.int64)}, "at most 1000000"),
    ],
)
def test_a_wrong_radius_or_filter_is_refused(ranker, wrong, message):
    with pytest.raises(InputError, match=message):
        ranker.search(CODES[:1], 1, **wrong)


def test_queries_and_their_time_are_told(folder):
    events = Noted()
    with Ranker(folder, **SPACE, events=events) as ranker:
        ranker.search(CODES[:7], 5)
        ranker.search(CODES[:3], 5)
    assert events.queries == 10


def test_what_was_counted_is_asked_for_again_and_again(folder):
    events = Noted()
    with Ranker(folder, **SPACE, poll_seconds=0.01, events=events):
        wait_until(lambda: events.reports > 1)


def test_a_report_that_fails_is_logged_and_the_gallery_followed_all_the_same(folder, caplog):
    class Failing(Noted):
        def report(self):
            super().report()
            raise ValueError("no such metric")

    events = Failing()
    with Ranker(folder, **SPACE, poll_seconds=0.01, events=events) as ranker:
        wait_until(lambda: events.reports)
        version = publish(folder, CODES[:10])
        wait_until(lambda: ranker.version == version)
    assert "no such metric" in caplog.text


@pytest.mark.parametrize("changes", [{"bits": 60}, {"fingerprint": "cd" * 32}])
def test_a_gallery_of_another_code_space_is_refused(folder, changes):
    with pytest.raises(InputError, match="belongs to another model"):
        Ranker(folder, **{**SPACE, **changes})


def test_a_new_version_is_swapped_in(ranker, folder):
    version = publish(folder, CODES[:10])
    wait_until(lambda: ranker.version == version)
    assert ranker.search(CODES[:1], 11).ids[0, 10] == PAD_ID


@pytest.mark.parametrize("breakage", ["flipped bit", "other fingerprint", "pointer", "no pointer", "cut short"])
def test_fault_16_a_broken_new_version_is_counted_once_and_the_old_one_serves(folder, breakage, caplog):
    events = Noted()
    with Ranker(folder, **SPACE, poll_seconds=0.01, events=events) as ranker:
        serving = ranker.version
        break_gallery(folder, breakage)
        wait_until(lambda: ranker.failed_swaps)
        time.sleep(0.1)
        assert (ranker.failed_swaps, events.refusals) == (1, 1)
        assert events.served == [(serving, 50, False)]
        assert ranker.search(CODES[:1], 1).gallery_version == serving
        assert f"version {serving} goes on serving" in caplog.text
        (folder / gallery.CURRENT).unlink(missing_ok=True)  # a writer refuses a damaged pointer too
        mended = publish(folder, CODES[:20])
        wait_until(lambda: ranker.version == mended)
        wait_until(lambda: events.served[1:] == [(mended, 20, True)])


def point(folder, text):
    """Move the pointer as a writer does: at once."""
    (folder / "new").write_text(text)
    (folder / "new").replace(folder / gallery.CURRENT)


def break_gallery(folder, breakage):
    if breakage == "pointer":
        point(folder, "../../etc/passwd\n")
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
        point(folder, "00000009-00000000\n")
