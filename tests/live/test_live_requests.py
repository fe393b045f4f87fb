"""What the server answers: right, refused, and right beside refused."""

import http.client
import io
import json
import re
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_model
import tritonclient.grpc as triton
from live_world import CODES, IMAGES, all_at_once, check, expected, png
from PIL import Image
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from dmsh_serving.client import SearchClient
from dmsh_serving.contract import (
    DECODE_MODEL,
    ENCODER_MODEL,
    MAX_K,
    PAD_DISTANCE,
    PAD_ID,
    RANKER_MODEL,
    SEARCH_FILE_MODEL,
    SEARCH_MODEL,
)
from dmsh_serving.errors import InputError, MissingError
from dmsh_serving.hamming.oracle import search_oracle
from dmsh_serving.ranker.follower import POLL_SECONDS
from dmsh_serving.ranker.rerank import asymmetric_order


def raw(server, model, **arrays):
    """Ask with nothing but the plain client: what it lets through, the server must judge."""
    inputs = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        inputs.append(tensor.set_data_from_numpy(array))
    with triton.InferenceServerClient(server.url) as client:
        return client.infer(model, inputs, client_timeout=10)


@pytest.mark.parametrize("count", [1, 8, 70])
@pytest.mark.parametrize("k", [1, 10, 200])
def test_answers_equal_the_oracle(client, count, k):
    images = IMAGES[230 - count : 230]
    answer = client.search(images, k)
    check(answer, images, k)
    np.testing.assert_array_equal(answer.code, tiny_model.codes_of(images))
    assert answer.keys.tolist() == [[f"image-{number}" for number in row] for row in answer.ids.tolist()]
    assert len(set(answer.gallery_version)) == 1


def test_files_give_what_their_pixels_give(client, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(png(IMAGES[250]))
    answer = client.search_files([png(IMAGES[251]), path], 5)
    check(answer, IMAGES[[251, 250]], 5)


def test_codes_and_logits_equal_whole_number_arithmetic(client):
    encoded = client.encode(IMAGES[:20])
    np.testing.assert_array_equal(encoded.code, CODES[:20])
    np.testing.assert_array_equal(encoded.logits, tiny_model.logits_of(IMAGES[:20]))


def test_without_k_ten_are_found(server):
    assert raw(server, SEARCH_MODEL, image=IMAGES[:2]).as_numpy("ids").shape == (2, 10)
    assert raw(server, RANKER_MODEL, code=CODES[:2]).as_numpy("ids").shape == (2, 10)


def test_fault_09_more_than_the_gallery_holds_is_padded(client):
    answer = client.search(IMAGES[:2], 210)
    assert (answer.ids[:, 200:] == PAD_ID).all()
    assert (answer.distances[:, 200:] == PAD_DISTANCE).all()
    assert (answer.keys[:, 200:] == "").all()
    assert (answer.ids[:, :200] != PAD_ID).all()


@pytest.mark.parametrize("k", [0, -3, MAX_K + 1])
def test_fault_09_k_out_of_range_is_refused(client, k):
    with pytest.raises(InputError, match=f"k = {k} is out of range: ask for 1 to {MAX_K}"):
        client.search(IMAGES[:1], k)


def test_a_request_for_more_results_than_are_answered_is_refused_and_the_client_asks_in_parts(server, client):
    with pytest.raises(InferenceServerException, match="5 codes with k = 16384 are 81920 results") as error:
        raw(server, RANKER_MODEL, code=CODES[:5], k=np.full((5, 1), MAX_K))
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    check(client.search(IMAGES[:5], MAX_K), IMAGES[:5], MAX_K)


def test_two_ks_in_one_request_are_refused(server):
    with pytest.raises(InferenceServerException, match="the same in every row") as error:
        raw(server, SEARCH_MODEL, image=IMAGES[:2], k=np.array([[1], [2]], np.int64))
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_a_radius_keeps_what_is_near_and_a_filter_what_it_names(client):
    allowed = np.array([3, 50, 51, 120, 999])
    within = [client.search(IMAGES[:20], 30, radius=20), client.search_files([png(IMAGES[0])], 30, radius=20)]
    for answer, images in zip(within, (IMAGES[:20], IMAGES[:1]), strict=True):
        ids, distances = expected(images, 30)
        beyond = distances > 20
        assert beyond.any()
        np.testing.assert_array_equal(answer.ids, np.where(beyond, PAD_ID, ids))
        np.testing.assert_array_equal(answer.distances, np.where(beyond, PAD_DISTANCE, distances))
    for answer in (
        client.search(IMAGES[:20], 5, allowed=allowed),
        client.search(IMAGES[:20], 5, allowed=list(allowed)),
    ):
        distances, rows = search_oracle(CODES[:20], CODES[allowed[:4]], 5)
        np.testing.assert_array_equal(answer.ids, np.append(allowed[:4], PAD_ID)[rows])
        np.testing.assert_array_equal(answer.distances, distances)
    assert (client.search(IMAGES[:1], 5, allowed=[]).ids == PAD_ID).all()


def test_answers_at_equal_distance_are_ordered_by_the_logits_where_that_is_asked_for(client):
    plain = client.search(IMAGES[:20], 10)
    for answer in (
        client.search(IMAGES[:20], 10, rerank="asymmetric"),
        client.search_files([png(image) for image in IMAGES[:20]], 10, rerank="asymmetric"),
    ):
        logits = tiny_model.logits_of(IMAGES[:20]).astype(np.float32)
        order = asymmetric_order(logits, CODES[plain.ids], plain.distances, plain.ids)
        np.testing.assert_array_equal(answer.ids, np.take_along_axis(plain.ids, order, axis=1))
        np.testing.assert_array_equal(answer.distances, plain.distances)
    with pytest.raises(InputError, match="rerank must be 'asymmetric'"):
        client.search(IMAGES[:1], 10, rerank="better")


def test_requests_of_every_kind_at_the_same_time_are_answered_each_as_asked(client):
    def ask(row):
        kinds = {0: {}, 1: {"radius": 24}, 2: {"allowed": range(row)}, 3: {"allowed": [row, 5], "radius": 30}}
        return client.search(IMAGES[row : row + 1], 1 + row % 7, **kinds[row % 4])

    answers = all_at_once([lambda row=row: ask(row) for row in range(64)])
    for row, answer in enumerate(answers):
        k = 1 + row % 7
        allowed = {2: np.arange(row), 3: np.array(sorted({row, 5}))}.get(row % 4, np.arange(200))
        distances, rows = search_oracle(CODES[row : row + 1], CODES[allowed], k)
        distances[distances > {1: 24, 3: 30}.get(row % 4, 64)] = PAD_DISTANCE
        ids = np.where(distances == PAD_DISTANCE, PAD_ID, np.append(allowed, PAD_ID)[rows])
        np.testing.assert_array_equal(answer.ids, ids)
        np.testing.assert_array_equal(answer.distances, distances)


def test_requests_with_filters_of_different_lengths_share_the_rankers_calls(server, client):
    def calls():
        with triton.InferenceServerClient(server.url) as asked:
            return asked.get_inference_statistics(RANKER_MODEL).model_stats[0].execution_count

    before = calls()
    answers = all_at_once(
        [lambda row=row: client.search(IMAGES[row : row + 1], 1, allowed=range(1 + row % 9)) for row in range(64)]
    )
    assert all(answer.ids[0, 0] <= row % 9 for row, answer in enumerate(answers))
    assert calls() - before < 64


REFUSED = {
    "shape": (SEARCH_MODEL, {"image": IMAGES[:1, :8]}, r"Expected \[-1,16,16,3\], got \[1,8,16,3\]"),
    "no batch": (SEARCH_MODEL, {"image": IMAGES[0][:8]}, r"Expected \[-1,16,16,3\], got \[8,16,3\]"),
    "dtype": (
        SEARCH_MODEL,
        {"image": IMAGES[:1].astype(np.float32)},
        "is 'FP32', but model 'dmsh_search' expects 'UINT8'",
    ),
    "batch": (SEARCH_MODEL, {"image": IMAGES[:9]}, "batch-size must be <= 8"),
    "width": (RANKER_MODEL, {"code": CODES[:1, :7]}, r"Expected \[-1,8\], got \[1,7\]"),
    "k dtype": (RANKER_MODEL, {"code": CODES[:1], "k": np.ones((1, 1), np.int32)}, "expects 'INT64'"),
    "radius": (RANKER_MODEL, {"code": CODES[:1], "radius": -np.ones((1, 1), np.int64)}, "radius = -1 is out of range"),
    "filter": (SEARCH_MODEL, {"image": IMAGES[:1], "filter": np.full((1, 2), -7)}, "filter has id -7"),
    "filter dtype": (RANKER_MODEL, {"code": CODES[:1], "filter": np.ones((1, 2), np.int32)}, "expects 'INT64'"),
    "name": (ENCODER_MODEL, {"picture": IMAGES[:1]}, "picture"),
    "no input": (DECODE_MODEL, {}, "expected 1 inputs but got 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_fault_08_a_malformed_request_is_refused_with_what_was_expected(server, case):
    model, arrays, message = REFUSED[case]
    with pytest.raises(InferenceServerException, match=message) as error:
        raw(server, model, **arrays)
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("bad", [b"", b"not an image", png(IMAGES[0])[:-40], b"GIF89a", b"%PDF-1.7\n"])
def test_a_bad_file_is_refused(client, bad):
    with pytest.raises(InputError, match="file"):
        client.search_files([bad])


def test_requests_at_the_same_time_share_the_encoders_runs(server, client):
    def counts():
        with triton.InferenceServerClient(server.url) as asked:
            found = asked.get_inference_statistics(ENCODER_MODEL).model_stats[0]
        return found.inference_count, found.execution_count

    before = counts()
    answers = all_at_once([lambda row=row: client.search(IMAGES[row : row + 1], 3) for row in range(64)])
    for row, answer in enumerate(answers):
        check(answer, IMAGES[row : row + 1], 3)
    inferences, executions = (after - start for after, start in zip(counts(), before, strict=True))
    assert inferences == 64
    assert executions < 64


def test_fault_29_30_31_hostile_files_fail_alone_and_at_once_among_good_ones(client):
    def jpeg(side, **options):
        buffer = io.BytesIO()
        Image.effect_noise((side, side), 50).save(buffer, "JPEG", **options)
        return buffer.getvalue()

    half, scans = jpeg(256), jpeg(2000, progressive=True)
    half = half[: len(half) // 2] + b"\xff\xd9"
    scans = scans[:-2] + scans[scans.rfind(b"\xff\xda") : -2] * 60 + scans[-2:]
    tags = (
        (256, 16),
        (257, 16),
        (258, 8),
        (259, 8),
        (262, 1),
        (277, 1),
        (322, 40_000),
        (323, 40_000),
        (324, 8),
        (325, 9),
    )
    tile = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, n) for tag, n in tags
    )
    hostile = {half: "the image data ends early", scans: "more than 64 scans", tile + bytes(4): "MiB to decode"}
    files = [*(png(image) for image in IMAGES[:9]), *hostile]
    start = time.perf_counter()
    answers = all_at_once([lambda file=file: client.search_files([file], 4) for file in files])
    assert time.perf_counter() - start < 10  # beside other tests; decoding them would take longer
    for row, answer in enumerate(answers[:9]):
        check(answer, IMAGES[row : row + 1], 4)
    for answer, message in zip(answers[9:], hostile.values(), strict=True):
        assert isinstance(answer, InputError)
        assert message in str(answer)


def test_bad_requests_fail_alone_among_good_ones(client):
    good, nan, bad_k, bad_file = range(4)
    kinds = [good, nan, good, bad_k, bad_file] * 12
    calls = {
        good: lambda row: client.search_files([png(IMAGES[row])], 4),
        nan: lambda row: client.search(tiny_model.WHITE, 4),
        bad_k: lambda row: client.search(IMAGES[row : row + 1], 0),
        bad_file: lambda row: client.search_files([b"junk"], 4),
    }
    answers = all_at_once([lambda row=row, kind=kind: calls[kind](row) for row, kind in enumerate(kinds)])
    for row, (kind, answer) in enumerate(zip(kinds, answers, strict=True)):
        if kind == good:
            check(answer, IMAGES[row : row + 1], 4)
        else:
            assert isinstance(answer, InputError)
            assert {nan: "NaN", bad_k: "k = 0", bad_file: "not an image"}[kind] in str(answer)


def test_the_query_command_prints_a_table_and_writes_json(server, tmp_path):
    for number in (7, 8):
        (tmp_path / f"{number}.png").write_bytes(png(IMAGES[number]))
    files = [str(tmp_path / "7.png"), str(tmp_path / "8.png")]
    command = [sys.executable, "-m", "dmsh_serving", "query", *files, "--url", server.url, "-k", "3"]
    answer = subprocess.run(
        [*command, "--json", str(tmp_path / "found.json")], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert "image-7" in answer.stdout
    results = json.loads((tmp_path / "found.json").read_text())["results"]
    assert [result["file"] for result in results] == files
    assert results[0]["nearest"][0] == {"id": 7, "distance": 0, "key": "image-7"}
    assert [len(result["nearest"]) for result in results] == [3, 3]
    np.save(tmp_path / "allowed.npy", np.array([9, 8]))
    command += ["--allow", str(tmp_path / "allowed.npy"), "--radius", "0", "--rerank", "asymmetric"]
    subprocess.run([*command, "--json", str(tmp_path / "found.json")], capture_output=True, check=True)
    results = json.loads((tmp_path / "found.json").read_text())["results"]
    assert [[image["id"] for image in result["nearest"]] for result in results] == [[], [8]]


def test_a_query_names_the_file_that_is_bad_and_answers_the_others(server, tmp_path):
    pytest.importorskip("jinja2", reason="jinja2 is not installed: pip install 'dmsh-toolkit[web]'")
    folder = tmp_path / "queries"
    folder.mkdir()
    for number in (7, 8):
        (folder / f"{number}.png").write_bytes(png(IMAGES[number]))
    (folder / "bad.png").write_bytes(b"junk")
    (folder / "gone.png").symlink_to("nowhere")
    (folder / "notes.txt").write_text("no image")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "image-7").write_bytes(png(IMAGES[7]))
    command = [sys.executable, "-m", "dmsh_serving", "query", str(folder), str(tmp_path / "absent.png"), "-k", "3"]
    sheet = ["--sheet", str(tmp_path / "sheet.html"), "--images", str(tmp_path / "images")]
    result = ["--json", str(tmp_path / "found.json")]
    answer = subprocess.run([*command, *sheet, *result, "--url", server.url], capture_output=True, text=True)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: 3 of 5 files cannot be searched: ")
    assert "absent.png: no such file" in answer.stderr
    assert "bad.png: " in answer.stderr
    assert "gone.png: No such file or directory" in answer.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [result["nearest"][0]["key"] for result in found["results"]] == ["image-7", "image-8"]
    assert len(found["bad"]) == 3
    assert (tmp_path / "sheet.html").read_text().count("<img ") == 3  # two queries and the one neighbour that is there


def test_an_unknown_model_is_named(server):
    with SearchClient(server.url) as client, pytest.raises(MissingError, match=r"does not serve this: .*dmsh_other"):
        client.max_batch("dmsh_other")


def metrics(server):
    connection = http.client.HTTPConnection(server.metrics_url, timeout=5)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return text, dict(re.findall(r"^(dmsh_\w+)(?:{})? (\S+)$", text, flags=re.MULTILINE))


def test_metrics_are_served_on_loopback_with_the_gallerys_own(world, server, client):
    time.sleep(3 * POLL_SECONDS)  # until the queries of other tests are reported
    before = float(metrics(server)[1]["dmsh_rank_queries_total"])
    client.search(IMAGES[:2], 1)
    deadline = time.monotonic() + 60
    while float(metrics(server)[1]["dmsh_rank_queries_total"]) < before + 2:  # reported some times a second
        assert time.monotonic() < deadline
        time.sleep(0.05)
    text, found = metrics(server)
    assert 'nv_inference_count{model="dmsh_encoder",version="1"}' in text
    number = int((world.gallery / "CURRENT").read_text()[:8])  # other tests may have published
    assert (found["dmsh_gallery_codes"], found["dmsh_gallery_version_number"]) == ("200", str(number))
    assert found["dmsh_gallery_current"] == "1"
    assert (found["dmsh_gallery_swaps_total"], found["dmsh_gallery_failed_swaps_total"]) == (
        str(number - 1),
        "0",
    )
    assert 0 < float(found["dmsh_rank_seconds_sum"]) < 60


def test_models_cannot_be_loaded_or_unloaded_from_outside(server):
    with triton.InferenceServerClient(server.url) as client:
        for call in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match="restricted"):
                call(SEARCH_FILE_MODEL)
    connection = http.client.HTTPConnection(server.http_url, timeout=5)
    connection.request("POST", f"/v2/repository/models/{SEARCH_FILE_MODEL}/unload")
    assert connection.getresponse().status == http.HTTPStatus.FORBIDDEN


def test_clients_reach_neither_shared_memory_nor_logging(client, server):
    with triton.InferenceServerClient(server.url) as plain:
        for call in (
            lambda: plain.register_system_shared_memory("x", "/dmsh-anything", 64),
            lambda: plain.update_log_settings({"log_info": False}),
            lambda: plain.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
        ):
            with pytest.raises(InferenceServerException, match="restricted"):
                call()
