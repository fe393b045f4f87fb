"""What a gallery and its ranker survive; the numbers are those of the project's table of faults."""

import shutil
import threading
import time

import numpy as np
import pytest
import tiny_model
from PIL import Image

from dmsh_serving import gallery
from dmsh_serving.contract import LOGITS, RERANK
from dmsh_serving.encoder.codes_of_images import codes_of_images
from dmsh_serving.encoder.onnxruntime import OnnxEncoder
from dmsh_serving.errors import InputError
from dmsh_serving.files import sha256_of_file
from dmsh_serving.gallery.folder import next_id_of, part_path, writing
from dmsh_serving.gallery.sync import sync
from dmsh_serving.hamming.oracle import search_oracle
from dmsh_serving.ranker import follower
from dmsh_serving.ranker.asks import Ask, rank
from dmsh_serving.ranker.follower import Ranker, RankerEvents
from dmsh_serving.triton.services import RankerService

IMAGES = tiny_model.random_images(40)
CODES = tiny_model.codes_of(IMAGES)
SPACE = {"bits": tiny_model.BITS, "fingerprint": tiny_model.FINGERPRINT}


class Noted(RankerEvents):
    """Notes what a ranker tells."""

    def __init__(self):
        self.refusals, self.current = 0, []

    def refused(self):
        self.refusals += 1

    def following(self, current):
        self.current.append(current)


@pytest.fixture
def folder(tmp_path):
    """A gallery of two versions: 20 codes, then 30."""
    gallery.build(tmp_path / "gallery", CODES[:20], None, None, **SPACE)
    gallery.append(tmp_path / "gallery", CODES[20:30], None, None)
    return tmp_path / "gallery"


@pytest.fixture
def events():
    return Noted()


@pytest.fixture
def ranker(folder, events, monkeypatch):
    monkeypatch.setattr(follower, "_FIRST_RETRY_SECONDS", 0.02)
    with Ranker(folder, **SPACE, poll_seconds=0.01, events=events) as opened:
        yield opened


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 60 s"
        time.sleep(0.005)


def arrive(path, data):
    """Put a file there at once, as rsync does."""
    path.with_name("arriving").write_bytes(data)
    path.with_name("arriving").replace(path)


def damage(folder):
    """Flip one bit of the version that serves; return its name."""
    path = part_path(folder, gallery.current_version(folder))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    return gallery.current_version(folder)


def test_fault_32_an_image_whose_logits_are_nan_gets_no_code(tmp_path):
    model = tiny_model.write(tmp_path / "model.onnx")
    (tmp_path / "images").mkdir()
    for name, pixels in (("a.png", IMAGES[0]), ("white.png", tiny_model.WHITE[0]), ("z.png", IMAGES[1])):
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    with pytest.raises(InputError, match=r"model\.onnx gives NaN or Inf for white\.png: no code can be made of it"):
        codes_of_images(model, tmp_path / "images", 8)
    white = tmp_path / "images" / "white.png"
    white.unlink()
    np.testing.assert_array_equal(codes_of_images(model, tmp_path / "images", 8).codes, CODES[:2])
    gallery.build(tmp_path / "gallery", CODES[:1], None, ["a.png"], **SPACE)
    Image.fromarray(tiny_model.WHITE[0]).save(white)
    with pytest.raises(InputError, match=r"gives NaN or Inf for white\.png"):
        sync(tmp_path / "gallery", tmp_path / "images", model, 8)
    assert gallery.open_current(tmp_path / "gallery").count == 1


@pytest.mark.parametrize("reranked", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_fault_32_a_ranker_that_is_handed_nan_logits_refuses_whichever_encoder_made_them(ranker, reranked, value):
    service = RankerService(ranker)
    logits = tiny_model.logits_of(IMAGES[:2]).astype(np.float32)
    asked = {RERANK: np.array([[b"asymmetric"]] * 2, np.object_)} if reranked else {}
    broken = logits.copy()
    broken[1, 5] = value
    answers = service.answer([{"code": CODES[:2], LOGITS: each, **asked} for each in (logits, broken, logits)])
    assert isinstance(answers[1], InputError)
    assert "logits of row 1 hold NaN or Inf" in str(answers[1])
    assert answers[0]["ids"][:, 0].tolist() == answers[2]["ids"][:, 0].tolist() == [0, 1]


@pytest.mark.parametrize("ids", ["a range", "close together"])
def test_fault_33_a_filter_of_a_million_ids_is_looked_up_in_milliseconds(tmp_path, ids):
    count = 1_000_000
    random = np.random.default_rng(0)
    own = np.arange(count) if ids == "a range" else np.sort(random.permutation(3 * count // 2)[:count])
    codes = random.integers(0, 256, (count, 8), np.uint8)
    snapshot = gallery.build(tmp_path / "g", codes, own, None, **SPACE)
    allowed = random.choice(own, count).astype(np.int64)
    ask = Ask(codes[:1], 10, filters=allowed[None])
    spent = []
    for _ in range(3):
        start = time.thread_time()  # of this thread alone: other work on the machine does not count
        ask.check(64)
        (found,) = rank(snapshot, [ask], threads=1)
        spent.append(time.thread_time() - start)
    assert min(spent[1:]) < 0.05  # the first makes the table of ids
    kept = np.isin(own, allowed)
    distances, rows = search_oracle(codes[:1], codes[kept], 10)
    np.testing.assert_array_equal(found.ids, own[kept][rows])
    np.testing.assert_array_equal(found.distances, distances)


def test_fault_33_ids_that_lie_far_apart_are_found_too(tmp_path):
    own = np.unique(np.random.default_rng(0).integers(0, 2**62, 50_000))
    codes = np.random.default_rng(1).integers(0, 256, (len(own), 8), np.uint8)
    snapshot = gallery.build(tmp_path / "g", codes, own, None, **SPACE)
    allowed = np.random.default_rng(2).choice(own, 30_000)
    kept = np.isin(own, allowed)
    _, rows = search_oracle(codes[:1], codes[kept], 10)
    np.testing.assert_array_equal(snapshot.search(codes[:1], 10, allowed=allowed).ids, own[kept][rows])


def test_fault_34_a_pointer_that_arrives_before_its_file_is_followed_when_the_file_is_there(ranker, folder, events):
    elsewhere = folder.with_name("elsewhere")
    shutil.copytree(folder, elsewhere)
    version = gallery.append(elsewhere, CODES[30:], None, None).version
    arrive(folder / "CURRENT", version.encode())  # the order of rsync
    wait_until(lambda: events.refusals == 1)
    assert events.current[-1] is False
    time.sleep(0.2)
    assert (events.refusals, ranker.search(CODES[35:36], 1).distances[0, 0] > 0) == (1, True), "it is told once"
    data = part_path(elsewhere, version).read_bytes()
    arrive(part_path(folder, version), data[: len(data) // 2])
    wait_until(lambda: events.refusals == 2)
    arrive(part_path(folder, version), data)
    wait_until(lambda: ranker.version == version)
    wait_until(lambda: events.current[-1])
    assert ranker.search(CODES[35:36], 1).ids.tolist() == [[35]]


@pytest.mark.parametrize("error", [MemoryError, ValueError, RuntimeError, AssertionError])
def test_fault_34_no_exception_ends_the_thread_that_follows(ranker, folder, events, monkeypatch, caplog, error):
    def fail(*_, **__):
        raise error("odd")

    with monkeypatch.context() as broken:
        broken.setattr(gallery, "open_current", fail)
        version = gallery.append(folder, CODES[30:], None, None).version
        wait_until(lambda: events.refusals == 1)
        assert (ranker.failed_swaps, events.current[-1]) == (1, False)
        assert "odd; version" in caplog.text
        assert "Traceback" in caplog.text
    wait_until(lambda: ranker.version == version)


def test_fault_34_nor_does_one_of_whoever_counts(folder, monkeypatch):
    class Broken(Noted):
        def serving(self, snapshot, swapped):
            if swapped:
                raise RuntimeError("the server is gone")

        def report(self):
            raise RuntimeError("the server is gone")

        def refused(self):
            super().refused()
            raise RuntimeError("the server is gone")

    monkeypatch.setattr(follower, "_FIRST_RETRY_SECONDS", 0.02)
    events = Broken()
    with Ranker(folder, **SPACE, poll_seconds=0.01, events=events) as ranker:
        arrive(folder / "CURRENT", b"nonsense")
        wait_until(lambda: events.refusals == 1)
        arrive(folder / "CURRENT", ranker.version.encode())
        version = gallery.append(folder, CODES[30:], None, None).version
        wait_until(lambda: ranker.version == version)
        assert any(thread.name == "gallery-watch" for thread in threading.enumerate())


@pytest.mark.parametrize("damaged", ["its file", "its pointer", "its pointer is gone"])
def test_fault_35_a_damaged_gallery_serves_its_last_sound_version_and_says_so(folder, events, caplog, damaged):
    newest = gallery.current_version(folder)
    if damaged == "its file":
        damage(folder)
    elif damaged == "its pointer":
        (folder / "CURRENT").write_bytes(b"\0" * 18)
    else:
        (folder / "CURRENT").unlink()
    with Ranker(folder, **SPACE, poll_seconds=0.01, events=events) as ranker:
        count = 20 if damaged == "its file" else 30
        assert (ranker.version == newest) == (count == 30)
        assert (ranker.search(CODES[:30], 40).ids >= 0).sum() == 30 * count
        assert (ranker.failed_swaps, events.refusals, events.current[-1]) == (1, 1, False)
        (record,) = (record for record in caplog.records if record.levelname == "ERROR")
        assert "the last sound one, serves in its place" in record.message
        assert "dmsh-serve gallery rollback" in record.message
        time.sleep(0.1)
        assert ranker.failed_swaps == 1, "it is told once"
        gallery.rollback(folder)
        wait_until(lambda: events.current[-1])
        assert ranker.search(CODES[:1], 1).ids.tolist() == [[0]]


def test_fault_35_another_models_gallery_or_one_without_a_sound_version_is_not_served(folder, tmp_path):
    with pytest.raises(InputError, match="belongs to another model"):
        Ranker(folder, bits=64, fingerprint="cd" * 32)
    other = {"bits": 64, "fingerprint": "cd" * 32}
    gallery.build(folder, CODES[:20], None, None, **other, overwrite=True)
    with pytest.raises(InputError, match="belongs to another model"):  # though an older version is of this one
        Ranker(folder, **SPACE)
    gallery.build(folder, CODES[:20], None, None, **SPACE, overwrite=True)
    damage(folder)
    with pytest.raises(InputError, match="its checksum does not match its content"):  # though another's is sound
        Ranker(folder, **SPACE)
    shutil.rmtree(folder)
    gallery.build(folder, CODES[:20], None, None, **SPACE)
    damage(folder)
    with pytest.raises(InputError, match="its checksum does not match its content"):
        Ranker(folder, **SPACE)
    with pytest.raises(InputError, match="has no sound version before 0000"):
        gallery.rollback(folder)


def test_fault_35_a_rollback_names_the_version_before_and_writers_go_on_from_it(folder):
    first, second = sorted(path.name[8:25] for path in folder.glob("gallery-*"))
    assert gallery.current_version(folder) == second
    with writing(folder), pytest.raises(InputError, match="is being changed by another process"):
        gallery.rollback(folder)
    assert gallery.rollback(folder).version == gallery.current_version(folder) == first
    after = gallery.append(folder, CODES[30:32], None, None)
    assert after.version > second
    assert after.ids.tolist() == [*range(20), 30, 31], "the ids of the version that was taken back do not come again"


def test_fault_41_an_id_that_was_removed_is_never_given_out_again(folder):
    gallery.remove(folder, np.array([29, 28]))
    assert gallery.append(folder, CODES[:1], None, None).ids.tolist()[-2:] == [27, 30]
    gallery.remove(folder, np.array([30]))
    gallery.compact(folder)
    assert gallery.append(folder, CODES[:2], None, None).ids.tolist()[-2:] == [31, 32]
    gallery.remove(folder, gallery.open_current(folder).ids)
    assert gallery.open_current(folder).count == 0
    assert gallery.append(folder, CODES[:1], None, None).ids.tolist() == [33]
    gallery.remove(folder, np.array([33]))
    assert gallery.append(folder, CODES[:1], np.array([5]), None).ids.tolist() == [5], "an id that is asked for"
    assert gallery.append(folder, CODES[:1], None, None).ids.tolist() == [5, 34]
    assert next_id_of(folder) == 35


def test_fault_41_nor_is_one_of_a_version_that_was_taken_back(folder):
    gallery.rollback(folder)
    gallery.remove(folder, np.array([3]))  # sweeps the version that gave out 20 to 29
    assert gallery.append(folder, CODES[:1], None, None).ids.tolist()[-2:] == [19, 30]


def test_fault_41_nor_is_one_of_a_gallery_that_was_merged(folder, tmp_path):
    gallery.remove(folder, np.arange(5, 30))
    gallery.build(tmp_path / "other", CODES[30:31], np.array([9]), None, **SPACE)
    merged = gallery.merge([folder, tmp_path / "other"], tmp_path / "merged")
    assert merged.ids.tolist() == [0, 1, 2, 3, 4, 9]
    assert gallery.append(tmp_path / "merged", CODES[:1], None, None).ids.tolist()[-1] == 30
    renumbered = gallery.merge([folder, tmp_path / "other"], tmp_path / "renumbered", renumber=True)
    assert (renumbered.ids.tolist(), renumbered.next_id) == ([0, 1, 2, 3, 4, 5], 6)


def test_fault_45_a_model_is_not_loaded_beside_the_manifest_of_another(tmp_path):
    model = tiny_model.write(tmp_path / "model.onnx")
    manifest = tmp_path / "model.onnx.json"
    manifest.write_text(f'{{"sha256": "{sha256_of_file(model)}"}}')
    OnnxEncoder(model).close()
    tiny_model.write(model, note="changed")
    with pytest.raises(InputError, match=r"is not the model that model\.onnx\.json describes: its SHA-256 is"):
        OnnxEncoder(model)
    for text in ("", "[]", "{}"):
        manifest.write_text(text)
        with pytest.raises(InputError, match="is not a manifest of dmsh-export"):
            OnnxEncoder(model)
    manifest.unlink()
    OnnxEncoder(model).close()
