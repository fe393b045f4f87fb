import gc
import io
import os
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
import tiny_model
from hostile_images import SLOW
from PIL import Image

from dmsh_serving import gallery
from dmsh_serving.contract import (
    CODE,
    DEFAULT_K,
    DISTANCES,
    FILE,
    FILTER,
    GALLERY_VERSION,
    IDS,
    IMAGE,
    KEYS,
    LOGITS,
    PAD_ID,
    RADIUS,
    RERANK,
    K,
)
from dmsh_serving.encoder.onnxruntime import OnnxEncoder
from dmsh_serving.errors import InputError, MissingError, UnavailableError
from dmsh_serving.hamming.oracle import search_oracle as oracle
from dmsh_serving.images import isolated
from dmsh_serving.images.framing import Framing
from dmsh_serving.images.isolated import Decoders
from dmsh_serving.ranker.follower import Ranker
from dmsh_serving.triton import services
from dmsh_serving.triton.server import vitals
from dmsh_serving.triton.services import DecodeService, EncoderService, RankerService, Settings, ask_of

IMAGES = tiny_model.random_images(20)
CODES = tiny_model.codes_of(IMAGES)


class Counted:
    """Wrap one method of an object and note how many rows each of its calls had."""

    def __init__(self, target, method):
        self.rows, self._call = [], getattr(target, method)
        setattr(target, method, self)

    def __call__(self, array, *rest):
        self.rows.append(len(array))
        return self._call(array, *rest)


@pytest.fixture
def encoder(tmp_path):
    with OnnxEncoder(tiny_model.write(tmp_path / "model.onnx")) as opened:
        yield opened


@pytest.fixture
def ranker(tmp_path):
    space = {"bits": tiny_model.BITS, "fingerprint": tiny_model.FINGERPRINT}
    gallery.build(tmp_path / "gallery", CODES, None, None, **space)
    with Ranker(tmp_path / "gallery", **space) as opened:
        yield opened


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def files(*contents):
    return {FILE: np.array([[content] for content in contents], dtype=np.object_)}


def test_the_encoder_runs_all_requests_at_once(encoder):
    runs = Counted(encoder, "infer")
    first, second = EncoderService(encoder).answer([{IMAGE: IMAGES[:3]}, {IMAGE: IMAGES[3:8]}])
    assert runs.rows == [8]
    np.testing.assert_array_equal(first[CODE], CODES[:3])
    np.testing.assert_array_equal(second[CODE], CODES[3:8])
    np.testing.assert_array_equal(second[LOGITS], tiny_model.logits_of(IMAGES[3:8]))


def test_a_bad_request_to_the_encoder_fails_alone(encoder):
    answers = EncoderService(encoder).answer(
        [{IMAGE: IMAGES[:1]}, {IMAGE: IMAGES[:1, :8]}, {IMAGE: tiny_model.WHITE}, {IMAGE: IMAGES[1:2]}]
    )
    np.testing.assert_array_equal(answers[0][CODE], CODES[:1])
    assert "expected" in str(answers[1]) or "must be uint8 [N, 16, 16, 3]" in str(answers[1])
    assert "NaN" in str(answers[2])
    np.testing.assert_array_equal(answers[3][CODE], CODES[1:2])


def test_only_bad_requests_do_not_run_the_encoder(encoder):
    runs = Counted(encoder, "infer")
    (answer,) = EncoderService(encoder).answer([{IMAGE: IMAGES[0]}])
    assert isinstance(answer, InputError)
    assert runs.rows == []


def test_an_encoder_of_another_code_space_is_refused(tmp_path):
    (tmp_path / "1").mkdir()
    tiny_model.write(tmp_path / "1" / "model.onnx")
    parameters = {"runtime": "onnxruntime", "threads": "1", "streams": "1", "bits": "64", "fingerprint": "cd" * 32}
    with pytest.raises(InputError, match=f"has fingerprint {tiny_model.FINGERPRINT}, config.pbtxt says cdcd"):
        EncoderService.open(Settings(tmp_path, tmp_path / "1", parameters))


def test_the_ranker_answers_all_requests_in_one_call(ranker):
    calls = Counted(ranker, "rank")
    k = np.full((2, 1), 3, np.int64)
    answers = RankerService(ranker).answer(
        [{CODE: CODES[:2], K: k}, {CODE: CODES[2:3]}, {CODE: CODES[3:5], K: k}, {CODE: CODES[5:6]}]
    )
    assert calls.rows == [4]  # requests
    for answer, rows, count in zip(answers, ([0, 1], [2], [3, 4], [5]), (3, DEFAULT_K, 3, DEFAULT_K), strict=True):
        distances, ids = oracle(CODES[rows], CODES, count)
        np.testing.assert_array_equal(answer[IDS], ids)
        np.testing.assert_array_equal(answer[DISTANCES], distances)
        assert answer[KEYS].shape == ids.shape
        assert answer[GALLERY_VERSION].tolist() == [[ranker.version]] * len(rows)


def test_a_bad_request_to_the_ranker_fails_alone(ranker):
    bad_k = {CODE: CODES[:1], K: np.zeros((1, 1), np.int64)}
    narrow = {CODE: CODES[:1, :7]}
    answers = RankerService(ranker).answer([bad_k, {CODE: CODES[:1]}, narrow])
    assert "k = 0 is out of range" in str(answers[0])
    assert answers[1][IDS][0, 0] == 0
    assert "codes of 64 bits must be uint8 [N, 8]" in str(answers[2])


def test_radius_and_filter_are_those_of_the_request(ranker):
    radius, allowed = np.full((2, 1), 0, np.int64), np.array([[2, 3], [PAD_ID, 0]])
    close, filtered, wrong = RankerService(ranker).answer(
        [
            {CODE: CODES[:2], RADIUS: radius},
            {CODE: CODES[:2], FILTER: allowed},
            {CODE: CODES[:1], FILTER: np.array([[-9]])},
        ]
    )
    assert (close[IDS][:, 0].tolist(), close[DISTANCES][:, 0].tolist()) == ([0, 1], [0, 0])
    assert sorted(filtered[IDS][0, :2].tolist()) == [2, 3]
    assert filtered[IDS][1, :2].tolist() == [0, PAD_ID]
    assert "filter has id -9" in str(wrong)


def test_logits_count_only_where_re_ranking_is_asked_for():
    logits = tiny_model.logits_of(IMAGES[:2]).astype(np.float32)
    asymmetric = np.array([[b"asymmetric"]] * 2, np.object_)
    request = {CODE: CODES[:2], LOGITS: logits}
    assert ask_of(request).logits is None
    np.testing.assert_array_equal(ask_of({**request, RERANK: asymmetric}).logits, logits)
    with pytest.raises(InputError, match="rerank needs the input logits"):
        ask_of({CODE: CODES[:2], RERANK: asymmetric})
    for wrong in (np.array([[b"asymmetric"], [b"other"]], np.object_), np.array([[b""]], np.object_)):
        with pytest.raises(InputError, match="rerank must be 'asymmetric' in every row"):
            ask_of({**request, RERANK: wrong})
    with pytest.raises(InputError) as refused:  # what was sent is not sent back, and escaped four times as long
        ask_of({**request, RERANK: np.array([[bytes(10_000)]] * len(logits), np.object_)})
    assert len(str(refused.value)) < 100


def test_k_is_ten_and_all_is_searched_unless_said(ranker):
    ask = ask_of({CODE: CODES[:1]})
    assert (ask.k, ask.radius, ask.filters) == (DEFAULT_K, None, None)
    assert ask_of({CODE: CODES[:3], K: np.full((3, 1), 7, np.int64)}).k == 7
    with pytest.raises(InputError, match="the request has no input code"):
        ask_of({})


@pytest.mark.parametrize("name", [K, RADIUS])
@pytest.mark.parametrize("values", [[[1], [2]], [[1.0]], np.zeros((0, 1), np.int64)])
def test_k_or_a_radius_that_is_not_one_whole_number_is_refused(name, values):
    with pytest.raises(InputError, match=f"{name} must be one int64 value"):
        ask_of({CODE: CODES[:1], name: np.asarray(values)})


@pytest.fixture
def decoder():
    service = DecodeService(16, Framing(), threads=2)
    yield service
    service.close()


def test_files_become_images_in_order(decoder):
    answers = decoder.answer([files(png(IMAGES[0])), files(png(IMAGES[1]), png(IMAGES[2]))])
    np.testing.assert_array_equal(answers[0][IMAGE], IMAGES[:1])
    np.testing.assert_array_equal(answers[1][IMAGE], IMAGES[1:3])


@pytest.mark.parametrize("bad", [b"", b"not an image", png(IMAGES[0])[:-40]])
def test_a_bad_file_fails_its_request_alone(decoder, bad):
    answers = decoder.answer([files(bad), files(png(IMAGES[0])), files(png(IMAGES[1]), bad)])
    assert isinstance(answers[0], InputError)
    np.testing.assert_array_equal(answers[1][IMAGE], IMAGES[:1])
    assert "file 1 of the request" in str(answers[2])


def test_the_files_after_a_bad_one_are_not_decoded(decoder, monkeypatch):
    begun = []

    def slow(data, *given, **named):
        begun.append(data)
        if data == b"bad":
            raise InputError("file: bad")
        time.sleep(0.05)
        return IMAGES[0]

    monkeypatch.setattr(decoder._decoders, "image", slow)
    bad, good = decoder.answer([files(b"bad", *[b"good"] * 40), files(b"another")])
    assert str(bad) == "file 0 of the request: file: bad"
    np.testing.assert_array_equal(good[IMAGE], IMAGES[:1])
    assert len(begun) < 20


def test_the_error_of_a_request_names_a_file_that_is_bad_whatever_is_decoded_first(decoder, monkeypatch):
    class Backwards:
        def map(self, call, turns):
            return reversed([call(turn) for turn in reversed(turns)])

    with monkeypatch.context() as patch:
        patch.setattr(decoder, "_pool", Backwards())
        (answer,) = decoder.answer([files(png(IMAGES[0]), b"bad", png(IMAGES[1]))])
    assert str(answer).startswith("file 1 of the request: file: not an image")


def test_requests_take_turns_so_that_one_of_many_files_does_not_hold_the_others_back(monkeypatch):
    service, begun = DecodeService(16, Framing(), threads=1), []

    def noted(data, *given, **named):
        begun.append(data)
        return IMAGES[data[1] - ord("0")]

    monkeypatch.setattr(service._decoders, "image", noted)
    answers = service.answer([files(b"a0", b"a1", b"a2"), files(b"b3"), files(b"c4", b"c5")])
    assert begun == [b"a0", b"b3", b"c4", b"a1", b"c5", b"a2"]
    for answer, rows in zip(answers, (slice(3), slice(3, 4), slice(4, 6)), strict=True):
        np.testing.assert_array_equal(answer[IMAGE], IMAGES[rows])
    service.close()


def test_a_file_has_less_time_while_others_wait(monkeypatch):
    service, left = DecodeService(16, Framing(), threads=1), []

    def noted(data, *given, until, **named):
        left.append(until - time.monotonic())
        return IMAGES[0]

    monkeypatch.setattr(service._decoders, "image", noted)
    service.answer([files(b"slow", b"slow"), files(b"good")])
    assert max(left) <= services.SHARED_SECONDS < services.DECODE_SECONDS / 4
    left.clear()
    service.answer([files(b"slow", b"slow", b"tiny")])  # as many rows as a batch has share none
    assert max(left) <= services.SHARED_SECONDS
    left.clear()
    service.answer([files(b"large")])
    assert min(left) > services.SHARED_SECONDS
    service.close()


@pytest.fixture
def hurried(decoder, monkeypatch):
    """A decoder whose files may take 20 s of processor time, but whose batches take half a second."""
    decoder._decoders = Decoders(2, seconds=20.0)
    monkeypatch.setattr(services, "DECODE_SECONDS", 0.5)
    return decoder


def test_a_good_file_that_slow_ones_left_no_time_for_is_unavailable_for_now(hurried):
    answers = hurried.answer([files(SLOW["TIFF"]), files(SLOW["TIFF"]), files(png(IMAGES[0]))])
    assert all(isinstance(answer, UnavailableError) for answer in answers)
    assert str(answers[-1]) == "the server is busy decoding other images: try again"


def test_a_request_that_was_alone_and_took_too_long_is_wrong_itself(hurried):
    (answer,) = hurried.answer([files(SLOW["TIFF"], SLOW["TIFF"])])
    assert isinstance(answer, InputError)
    assert str(answer) == "its files took too long to decode: send fewer at once, or smaller images"


def test_a_bad_file_is_told_though_the_time_of_the_others_ended(hurried):
    answers = hurried.answer([files(b"", SLOW["TIFF"]), files(SLOW["TIFF"])])  # empty: no process need start
    assert str(answers[0]) == "file 0 of the request: file: the file is empty"


def test_a_process_that_does_not_start_is_the_servers_fault_and_the_batch_is_not_repeated(decoder, monkeypatch):
    monkeypatch.setattr(isolated, "_START", "import nothing_of_this_name")
    answers = decoder.answer([files(b"one", b"two"), files(b"three")])
    assert [type(answer) for answer in answers] == [MissingError] * 2


def test_a_batch_of_slow_files_is_answered_before_the_launcher_calls_the_server_hanging(decoder, monkeypatch):
    spare = vitals.PATIENCE_SECONDS - services.DECODE_SECONDS
    assert spare > 3
    monkeypatch.setattr(services, "DECODE_SECONDS", 0.5)
    start = time.monotonic()
    answers = decoder.answer([files(SLOW["TIFF"])] * 12)  # of 0.5 s of processor time each
    assert time.monotonic() - start < 0.5 + spare
    assert all(isinstance(answer, InputError | UnavailableError) for answer in answers)
    assert isinstance(answers[-1], UnavailableError)


def test_a_missing_or_bad_parameter_is_named(tmp_path):
    settings = Settings(tmp_path, tmp_path / "1", {"threads": "many", "bits": "0"})
    with pytest.raises(InputError, match=r"config\.pbtxt has no parameter gallery"):
        settings.text("gallery")
    for name in ("threads", "bits"):
        with pytest.raises(InputError, match=f"{name} must be a whole number above 0"):
            settings.number(name)


def kept_of_20_requests(service, request):
    """Return how many bytes are in memory after 20 requests that are refused, while Python looks for no circles."""
    service.answer([request(), request()])  # what is loaded and kept once
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(10):
            assert all(isinstance(each, InputError) for each in service.answer([request(), request()]))
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        gc.enable()


def test_requests_that_are_refused_keep_nothing_in_memory(encoder):
    decoder = DecodeService(16, Framing(), 2)
    try:
        assert kept_of_20_requests(decoder, lambda: {FILE: np.array([[b"x" * 1_000_000]], object)}) < 1_000_000
    finally:
        decoder.close()
    service = EncoderService(encoder)
    assert kept_of_20_requests(service, lambda: {IMAGE: np.zeros((400, 17, 17, 3), np.uint8)}) < 1_000_000
    assert kept_of_20_requests(service, lambda: {IMAGE: np.repeat(tiny_model.WHITE, 400, axis=0)}) < 1_000_000


def test_a_link_that_leads_to_another_gallery_is_followed(tmp_path):
    for name, count in (("v1", 5), ("v2", 7)):
        gallery.build(
            tmp_path / name, np.zeros((count, 8), np.uint8), None, None, bits=64, fingerprint=tiny_model.FINGERPRINT
        )
    link, other = tmp_path / "link", tmp_path / "other"
    link.symlink_to("v1")
    other.symlink_to("v2")
    told = {"gallery": "../../link", "bits": "64", "fingerprint": tiny_model.FINGERPRINT, "threads": "1"}
    service = RankerService.open(Settings(tmp_path / "repository" / "model", tmp_path, told))
    try:
        (answer,) = service.answer([{CODE: np.zeros((1, 8), np.uint8), K: np.array([[9]])}])
        assert (answer[IDS] != PAD_ID).sum() == 5
        other.replace(link)
        deadline = time.monotonic() + 20
        while (answer[IDS] != PAD_ID).sum() == 5 and time.monotonic() < deadline:
            (answer,) = service.answer([{CODE: np.zeros((1, 8), np.uint8), K: np.array([[9]])}])
        assert (answer[IDS] != PAD_ID).sum() == 7
    finally:
        service.close()


def test_a_gallery_below_a_name_beyond_ascii_is_found_by_a_python_that_takes_ascii_for_names(tmp_path):
    gallery.build(tmp_path / "glänzend", np.zeros((5, 8), np.uint8), None, None, bits=64, fingerprint="ab" * 32)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from dmsh_serving.triton.services import RankerService, Settings\n"
        "assert sys.getfilesystemencoding() == 'ascii'\n"
        "told = {'gallery': '../gl\\xe4nzend', 'bits': '64', 'fingerprint': 'ab' * 32, 'threads': '1'}\n"
        "folder = Path(sys.argv[1]) / 'model'\n"
        "RankerService.open(Settings(folder, folder / '1', told)).close()\n"
    )
    (tmp_path / "model").mkdir()
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, check=True, timeout=120)
