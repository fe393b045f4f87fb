import io

import numpy as np
import pytest
import tiny_model
from PIL import Image

from dmsh_serving import gallery
from dmsh_serving.contract import CODE, DEFAULT_K, DISTANCES, FILE, GALLERY_VERSION, IDS, IMAGE, KEYS, LOGITS, K
from dmsh_serving.encoder import OnnxEncoder
from dmsh_serving.errors import InputError
from dmsh_serving.hamming_oracle import search_oracle as oracle
from dmsh_serving.ranker import Ranker
from dmsh_serving.services import DecodeService, EncoderService, RankerService, Settings, k_of

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
    parameters = {"threads": "1", "bits": "64", "fingerprint": "cd" * 32}
    with pytest.raises(InputError, match=f"has fingerprint {tiny_model.FINGERPRINT}, config.pbtxt says cdcd"):
        EncoderService.open(Settings(tmp_path, tmp_path / "1", parameters))


def test_the_ranker_searches_requests_of_one_k_together(ranker):
    searches = Counted(ranker, "search")
    k = np.full((2, 1), 3, np.int64)
    answers = RankerService(ranker).answer(
        [{CODE: CODES[:2], K: k}, {CODE: CODES[2:3]}, {CODE: CODES[3:5], K: k}, {CODE: CODES[5:6]}]
    )
    assert sorted(searches.rows) == [2, 4]
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


def test_k_is_ten_unless_given():
    assert k_of({}) == DEFAULT_K
    assert k_of({K: np.full((3, 1), 7, np.int64)}) == 7


@pytest.mark.parametrize("values", [[[1], [2]], [[1.0]], np.zeros((0, 1), np.int64)])
def test_k_that_is_not_one_whole_number_is_refused(values):
    with pytest.raises(InputError, match="k must be one int64 value"):
        k_of({K: np.asarray(values)})


@pytest.fixture
def decoder():
    service = DecodeService(16, threads=2)
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


def test_a_missing_or_bad_parameter_is_named(tmp_path):
    settings = Settings(tmp_path, tmp_path / "1", {"threads": "many", "bits": "0"})
    with pytest.raises(InputError, match=r"config\.pbtxt has no parameter gallery"):
        settings.text("gallery")
    for name in ("threads", "bits"):
        with pytest.raises(InputError, match=f"{name} must be a whole number above 0"):
            settings.number(name)
