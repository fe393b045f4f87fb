"""The HTTP API, over a real Triton and a real socket."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny_model
from hostile_images import SLOW
from web_world import CODES, COUNT, IMAGES, KEYS, ask, in_order, png

from dmsh_serving import gallery

pytestmark = pytest.mark.live


def found(answer):
    return [(image["distance"], image["id"]) for image in answer["images"]]


def test_a_file_finds_what_the_oracle_finds(web_page):
    answer = ask(web_page, "/v1/search?k=20&explain=true", png(IMAGES[7])).json()
    quick = ask(web_page, "/v1/search?k=20", png(IMAGES[7])).json()
    assert (quick["images"], quick["next"]) == (answer["images"], answer["next"])
    assert quick["times"]["total_ms"] > 0
    assert found(answer) == in_order([CODES[7]])[:20]
    assert [image["key"] for image in answer["images"]] == [KEYS[image["id"]] for image in answer["images"]]
    assert answer["query"]["like"][0]["code"] == CODES[7].tobytes().hex()
    np.testing.assert_allclose(answer["query"]["like"][0]["logits"], tiny_model.logits_of(IMAGES[7:8])[0])
    assert all(answer["times"][f"{step}_ms"] > 0 for step in ("decode", "encode", "rank"))


def test_a_key_finds_what_its_file_finds(web_page):
    by_key = ask(web_page, "/v1/search", {"key": KEYS[7], "k": 20}).json()
    assert found(by_key) == in_order([CODES[7]])[:20]
    assert by_key["times"]["encode_ms"] is None


@pytest.mark.parametrize("size", [1, 7, 100, 3000])
def test_pages_give_every_image_once_in_order(web_page, size):
    expected = in_order([CODES[3]])[: 5 * size]
    seen, question = [], {"like": [{"id": 3}], "k": size}
    for _ in range(5):
        answer = ask(web_page, "/v1/search", question).json()
        seen += found(answer)
        if answer["next"] is None:
            break
        question |= {"after": answer["next"], "version": answer["gallery_version"]}
    assert seen == expected


def test_the_last_page_says_that_it_is_the_last(web_page):
    answer = ask(web_page, "/v1/search", {"like": [{"id": 3}], "k": COUNT}).json()
    assert (len(answer["images"]), answer["next"]) == (COUNT, None)
    answer = ask(web_page, "/v1/search", {"like": [{"id": 3}], "k": COUNT - 1}).json()
    last = ask(web_page, "/v1/search", {"like": [{"id": 3}], "k": 9, "after": answer["next"]}).json()
    assert (len(last["images"]), last["next"], last["total"]) == (1, None, COUNT)


def test_several_examples_are_ordered_by_the_sum_of_their_distances(web_page):
    question = {"like": [{"id": 3}, {"id": 60}], "unlike": [{"key": KEYS[200]}], "k": 400}
    answer = ask(web_page, "/v1/search", question).json()
    assert found(answer) == in_order([CODES[3], CODES[60]], [CODES[200]])[:400]


def test_metadata_filters_and_is_counted(web_page):
    question = {"like": [{"id": 3}], "where": {"shelf": ["1", "4"], "parity": ["odd"]}, "k": 300}
    answer = ask(web_page, "/v1/search", question).json()
    allowed = [number for number in range(COUNT) if number % 7 in (1, 4) and number % 2]
    assert found(answer) == in_order([CODES[3]], allowed=allowed)[:300]
    assert answer["images"][0]["attributes"]["parity"] == "odd"
    (shelf, parity) = ask(web_page, "/v1/facets?shelf=1&shelf=4&parity=odd").json()["columns"]
    counts = {value["value"]: value["count"] for value in parity["values"]}
    assert counts == {"odd": len(allowed), "even": sum(n % 7 in (1, 4) and n % 2 == 0 for n in range(COUNT))}
    assert sum(value["count"] for value in shelf["values"]) == COUNT // 2


def test_radius_and_ids_filter(web_page):
    for after in ({}, {"after": {"distance": -1, "id": 0}}):
        question = {"like": [{"id": 3}], "ids": [3, 4, 60, "61", 9_999_999], "radius": 24, **after}
        answer = ask(web_page, "/v1/search", question).json()
        assert found(answer) == [each for each in in_order([CODES[3]], allowed=[3, 4, 60, 61]) if each[0] <= 24]


def test_a_gallery_of_another_model_is_refused_for_a_search_as_for_a_look(web_world, web_triton, tmp_path):
    gallery.build(tmp_path / "gallery", CODES, None, KEYS, bits=tiny_model.BITS, fingerprint="cd" * 32)
    with web_world.page(web_triton.url, gallery=tmp_path / "gallery", metadata=None) as page:
        look = ask(page, "/v1/gallery")
        assert (look.status, "belongs to another model" in look.json()["detail"]) == (409, True)
        for body in (png(IMAGES[7]), {"key": KEYS[7]}, {"like": [{"id": 1}, {"id": 2}]}):
            searched = ask(page, "/v1/search", body)
            assert (searched.status, searched.json()) == (409, look.json())


def test_a_thumbnail_and_a_view_come_as_webp_and_nothing_else_comes(web_page):
    for kind in ("thumbnails", "images"):
        answer = ask(web_page, f"/v1/{kind}/{KEYS[7]}")
        assert (answer.status, answer.headers["content-type"]) == (200, "image/webp")
        for hostile in ("..%2F..%2F..%2Fetc%2Fpasswd", "%2Fetc%2Fpasswd", "nothing.png", "%00", "model.onnx"):
            assert ask(web_page, f"/v1/{kind}/{hostile}").status == 404


def test_an_error_is_a_problem_with_what_to_do(web_page):
    for path, body, status, said in (
        ("/v1/search", {"key": "no such key"}, 404, "no image has the key"),
        ("/v1/search", {"like": [{"id": COUNT}]}, 404, "no image has the id"),
        ("/v1/search", {"key": KEYS[0], "k": 0}, 400, "k = 0 is out of range"),
        ("/v1/search", b"not an image", 400, "not an image"),
        ("/v1/search", {"code": "00"}, 400, "a search has no 'code'"),
        ("/v1/search", {"like": [{"code": "00"}]}, 400, "codes of 64 bits must be"),
        (
            "/v1/search",
            {"like": [{"id": 1}], "version": "00000009-00000000", "after": {"distance": 0, "id": 1}},
            410,
            "changed",
        ),
        ("/v1/search", {"like": [{"id": 1}], "where": {"serial": ["3"]}}, 400, "'serial' is no filter"),
        ("/v1/nothing", None, 404, "Not Found"),
        ("/v1/search", None, 405, "Method Not Allowed"),
    ):
        answer = ask(web_page, path, body)
        assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json"), answer
        problem = answer.json()
        assert problem["status"] == status
        assert said in problem["detail"]


def test_fault_29_a_region_of_a_file_that_is_slow_to_open_is_refused_while_the_page_answers(web_page):
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, web_page, "/v1/search?box=0,0,1,1", SLOW["TIFF"])
        assert ask(web_page, "/v1/search", {"key": KEYS[7]}).status == 200
        refused = slow.result()
    assert (refused.status, refused.json()["detail"]) == (400, "image: the image takes too long to decode")


def test_the_page_s_own_files_are_kept_by_browsers_until_they_change(web_page):
    page = ask(web_page, "/").body.decode()
    (address,) = [part for part in page.split('"') if part.endswith("/app.js")]
    answer = ask(web_page, address)
    assert (answer.status, answer.headers["cache-control"]) == (200, "public, max-age=31536000, immutable")
    assert answer.headers["content-type"].startswith("text/javascript")
    assert ask(web_page, "/static/another/app.js").headers["cache-control"] == "no-store"
    for name in ("nothing.js", "..%2Fapp.py", "app.py", "%2Fetc%2Fpasswd"):
        assert ask(web_page, address.replace("app.js", name)).status == 404


def test_several_thumbnails_come_in_one_answer_and_what_is_none_is_empty(web_page):
    keys = [KEYS[7], "../../etc/passwd", KEYS[9], "", KEYS[7]]
    answer = ask(web_page, "/v1/thumbnails", {"keys": keys})
    data, parts = answer.body, []
    while data:
        length = int.from_bytes(data[:4])
        parts.append(data[4 : 4 + length])
        data = data[4 + length :]
    expected = [ask(web_page, f"/v1/thumbnails/{KEYS[number]}").body for number in (7, 9)]
    assert parts == [expected[0], b"", expected[1], b"", expected[0]]
    for wrong in ({"keys": ["a"] * 101}, {"keys": [1]}, {"key": "a"}, ["a"], {"keys": [], "more": 1}):
        refused = ask(web_page, "/v1/thumbnails", wrong)
        assert (refused.status, "a list of at most 100 texts" in refused.json()["detail"]) == (400, True)


def test_a_thumbnail_that_a_browser_has_is_not_sent_again(web_page):
    first = ask(web_page, f"/v1/thumbnails/{KEYS[7]}")
    again = ask(web_page, f"/v1/thumbnails/{KEYS[7]}", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


def test_examinations_are_kept_for_their_version(web_page):
    first = ask(web_page, "/v1/gallery/duplicates?radius=1").json()
    assert ask(web_page, "/v1/gallery/duplicates?radius=1").json() == first
    assert first["groups"] > 0
    (largest, *_) = ask(web_page, "/v1/gallery/duplicates?radius=4").json()["largest"]
    assert [each["id"] for each in largest["images"]] == largest["ids"][:24]
    assert len(largest["ids"]) == largest["count"] > 24
    assert ask(web_page, "/v1/gallery/duplicates?radius=-1").status == 400
    assert ask(web_page, "/v1/gallery/shared").json()["groups"] <= first["groups"]
