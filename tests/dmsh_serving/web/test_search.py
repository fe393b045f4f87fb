"""Pages without the gallery's folder, versions that change, codes that are looked up: over a Triton made of numpy."""

import asyncio
import io
import threading

import numpy as np
import pytest
from hostile_images import SLOW
from PIL import Image
from web_steps import CODES, LIKE, SPACE, Steps, answer, pages

from dmsh_serving import gallery
from dmsh_serving.errors import InputError
from dmsh_serving.hamming.oracle import search_oracle
from dmsh_serving.images.decode import FORMATS
from dmsh_serving.images.isolated import Decoders
from dmsh_serving.web import search
from dmsh_serving.web.answers import Times
from dmsh_serving.web.codes.collection import GalleryFolder
from dmsh_serving.web.codes.ranking import Cursor
from dmsh_serving.web.http.problems import ProblemError
from dmsh_serving.web.http.questions import Example, Question
from dmsh_serving.web.pictures import originals as originals_module
from dmsh_serving.web.pictures.originals import Originals
from dmsh_serving.web.search import Searches
from dmsh_serving.web.steps import Nearest


@pytest.mark.parametrize("k", [1, 7, 100, 299, 300, 301])
def test_without_the_folder_pages_are_cut_from_what_triton_gives(originals, k):
    found, last = pages(Searches(Steps(), originals, None), k, like=LIKE)
    assert found == search_oracle(CODES[5:6], CODES, 300)[1][0].tolist()
    assert not last["truncated"]


def test_without_the_folder_the_end_of_what_triton_gives_is_said(originals, monkeypatch):
    monkeypatch.setattr(search, "MAX_K", 100)
    found, last = pages(Searches(Steps(), originals, None), 30, like=LIKE)
    assert found == search_oracle(CODES[5:6], CODES, 100)[1][0].tolist()
    assert last["truncated"]


def test_triton_is_not_asked_for_much_more_than_a_page_needs(originals):
    steps = Steps()
    pages(Searches(steps, originals, None), 10, like=LIKE)
    assert max(steps.asked) <= 640
    assert len(steps.asked) < 31 * 6


def test_without_the_folder_a_new_version_ends_the_search(originals):
    steps = Steps()
    searches = Searches(steps, originals, None)
    page = answer(searches, like=LIKE, k=10)
    steps.version = "00000002-bbbbbbbb"
    with pytest.raises(ProblemError, match="has changed") as error:
        answer(searches, like=LIKE, k=10, after=Cursor(3, 4), version=page["gallery_version"])
    assert error.value.status == 410


def test_without_the_folder_what_needs_codes_says_so(originals):
    searches = Searches(Steps(), originals, None)
    for asked in ({"like": LIKE * 2}, {"like": LIKE, "unlike": LIKE}, {"like": (Example(number=5),)}):
        with pytest.raises(ProblemError, match="--gallery FOLDER"):
            answer(searches, **asked)
    with pytest.raises(ProblemError, match="no image has the key"):
        answer(searches, like=(Example(key="5.png"),))


def test_without_the_folder_nothing_is_encoded_for_what_needs_codes(tmp_path):
    (tmp_path / "5.png").write_bytes(CODES[5].tobytes())
    steps = Steps()
    for asked in ({"like": (Example(key="5.png"),) * 64}, {"like": (Example(key="5.png"),), "where": (("a", ("b",)),)}):
        with pytest.raises(ProblemError, match="--gallery FOLDER"):
            answer(Searches(steps, Originals(tmp_path), None), **asked)
    assert steps.decoded == []


def test_a_key_without_the_folder_is_encoded_from_its_file(originals, tmp_path):
    (tmp_path / "images" / "5.png").write_bytes(CODES[5].tobytes())
    searches = Searches(Steps(), Originals(tmp_path / "images"), None)
    page = answer(searches, like=(Example(key="5.png"),), k=3)
    assert page["images"][0]["id"] == 5
    assert page["query"]["like"][0]["key"] == "5.png"
    assert page["times"]["encode_ms"] is not None


def test_with_the_folder_pages_continue_in_the_version_that_they_began_with(originals, tmp_path):
    keys = [f"{number}.png" for number in range(300)]
    first = gallery.build(tmp_path / "gallery", CODES, None, keys, **SPACE).version
    searches = Searches(Steps(first), originals, GalleryFolder(tmp_path / "gallery"))
    page = answer(searches, like=(Example(key="5.png"),), k=250)
    gallery.append(tmp_path / "gallery", CODES[:50], None, keys[:50], fingerprint=SPACE["fingerprint"])
    after = Cursor(page["next"]["distance"], page["next"]["id"])
    rest = answer(searches, like=(Example(number=5),), k=250, after=after, version=first)
    assert [image["id"] for image in page["images"] + rest["images"]] == search_oracle(CODES[5:6], CODES, 300)[1][
        0
    ].tolist()
    assert (rest["gallery_version"], rest["total"]) == (first, 300)
    assert answer(searches, like=LIKE * 2, k=1)["total"] == 350


def test_an_example_is_the_image_that_it_was_in_the_version_of_the_search(originals, tmp_path):
    keys = [f"{number}.png" for number in range(300)]
    first = gallery.build(tmp_path / "gallery", CODES, None, keys, **SPACE).version
    searches = Searches(Steps(first), originals, GalleryFolder(tmp_path / "gallery"))
    page = answer(searches, like=(Example(key="5.png"),), k=250)
    gallery.remove(tmp_path / "gallery", np.array([5]))
    replaced = gallery.append(tmp_path / "gallery", CODES[90:91], None, ["5.png"], fingerprint=SPACE["fingerprint"])
    asked = {"k": 250, "after": Cursor(page["next"]["distance"], page["next"]["id"]), "version": first}
    for example in (Example(key="5.png"), Example(number=5)):
        rest = answer(searches, like=(example,), **asked)
        found = [image["id"] for image in page["images"] + rest["images"]]
        assert found == search_oracle(CODES[5:6], CODES, 300)[1][0].tolist()
    assert answer(searches, like=(Example(key="5.png"), *LIKE), k=1)["gallery_version"] == replaced.version
    with pytest.raises(ProblemError, match="has changed") as error:
        answer(searches, like=(Example(number=5),), **{**asked, "version": "00000009-aaaaaaaa"})
    assert error.value.status == 410


def test_codes_of_a_version_from_before_another_model_are_not_mixed_with_those_of_the_current_one(originals, tmp_path):
    keys = [f"{number}.png" for number in range(300)]
    first = gallery.build(tmp_path / "gallery", CODES, None, keys, **SPACE).version
    other = {**SPACE, "fingerprint": "cd" * 32}
    now = gallery.build(tmp_path / "gallery", CODES[::-1], None, keys, **other, overwrite=True).version
    searches = Searches(Steps(now, "cd" * 32), originals, GalleryFolder(tmp_path / "gallery"))
    assert answer(searches, like=(Example(key="5.png"),), k=1, version=now)["images"][0]["distance"] == 0
    with pytest.raises(ProblemError, match="has changed") as error:
        answer(searches, like=(Example(key="5.png"),), k=1, version=first)
    assert error.value.status == 410


@pytest.mark.parametrize("has_folder", [True, False], ids=["with the folder", "without it"])
def test_codes_of_another_model_than_the_served_one_are_refused(originals, tmp_path, has_folder):
    version = gallery.build(tmp_path / "gallery", CODES, None, None, **SPACE).version
    steps = Steps(version)
    searches = Searches(steps, originals, GalleryFolder(tmp_path / "gallery") if has_folder else None)
    assert answer(searches, like=LIKE, k=1, fingerprint="ab" * 32)["images"][0]["distance"] == 0
    with pytest.raises(ProblemError, match="another model's") as error:
        answer(searches, like=LIKE, k=1, fingerprint="cd" * 32)
    assert error.value.status == 410


@pytest.mark.parametrize("moment", ["while it is encoded", "before it is ranked", "never"])
def test_a_file_that_one_model_encoded_is_not_ranked_among_codes_of_another(originals, moment):
    steps = Steps()
    encode, rank = steps.encode, steps.rank

    async def switched(image):
        steps.since = "cd" * 32 if moment == "while it is encoded" else steps.fingerprint
        return await encode(image)

    async def ranked(*arguments, **options):
        steps.since = "cd" * 32 if moment == "before it is ranked" else steps.fingerprint
        return await rank(*arguments, **options)

    steps.encode, steps.rank = switched, ranked
    asked = {"like": (Example(file=CODES[5].tobytes()),), "k": 1, "explain": True}
    if moment == "never":
        assert answer(Searches(steps, originals, None), **asked)["images"][0]["distance"] == 0
        return
    with pytest.raises(ProblemError, match="another model's") as error:
        answer(Searches(steps, originals, None), **asked)
    assert error.value.status == 410


def test_codes_are_refused_if_another_model_came_while_they_were_ranked(originals):
    steps = Steps()
    steps.since = "cd" * 32
    with pytest.raises(ProblemError, match="another model's"):
        answer(Searches(steps, originals, None), like=LIKE, k=1, fingerprint="ab" * 32)


@pytest.mark.parametrize("asked", [{"number": 5}, {"key": "5.png"}])
def test_an_example_is_ranked_in_the_version_that_it_was_looked_up_in_though_triton_has_another(
    originals, tmp_path, asked
):
    keys = [f"{number}.png" for number in range(300)]
    gallery.build(tmp_path / "gallery", CODES[::-1], None, keys, **SPACE)
    now = gallery.build(tmp_path / "gallery", CODES, None, keys, **SPACE, overwrite=True).version
    searches = Searches(Steps("00000001-aaaaaaaa"), originals, GalleryFolder(tmp_path / "gallery"))
    searches._steps.rank = lambda *_, **__: given("00000001-aaaaaaaa")
    page = answer(searches, like=(Example(**asked),), k=20)
    assert page["gallery_version"] == now
    assert [image["id"] for image in page["images"]] == search_oracle(CODES[5:6], CODES, 20)[1][0].tolist()


def test_triton_s_answer_is_kept_if_the_example_is_the_same_image_in_its_version(originals, tmp_path):
    keys = [f"{number}.png" for number in range(300)]
    before = gallery.build(tmp_path / "gallery", CODES, None, keys, **SPACE).version
    gallery.append(tmp_path / "gallery", CODES[:1], None, ["new.png"], fingerprint=SPACE["fingerprint"])
    searches = Searches(Steps(before), originals, GalleryFolder(tmp_path / "gallery"))
    assert answer(searches, like=(Example(number=5),), k=20)["gallery_version"] == before


@pytest.mark.parametrize("file", [None, CODES[5].tobytes()], ids=["code", "file"])
def test_a_version_that_is_named_answers_though_triton_has_another(originals, tmp_path, file):
    keys = [f"{number}.png" for number in range(300)]
    first = gallery.build(tmp_path / "gallery", CODES, None, keys, **SPACE).version
    steps = Steps(gallery.build(tmp_path / "gallery", CODES[::-1], None, keys, **SPACE, overwrite=True).version)
    searches = Searches(steps, originals, GalleryFolder(tmp_path / "gallery"))
    page = answer(searches, like=(Example(file=file),) if file else LIKE, k=20, version=first)
    assert page["gallery_version"] == first
    assert [image["id"] for image in page["images"]] == search_oracle(CODES[5:6], CODES, 20)[1][0].tolist()
    with pytest.raises(ProblemError, match="has changed") as error:
        answer(Searches(steps, originals, None), like=LIKE, k=20, version=first)
    assert error.value.status == 410


async def given(version):
    return Nearest(np.array([294]), np.array([0]), ["294.png"], version)


def test_while_triton_serves_the_model_before_a_version_of_another_one_waits(originals, tmp_path, caplog):
    folder = tmp_path / "gallery"
    first = gallery.build(folder, CODES, None, None, **SPACE).version
    steps = Steps(version=first)
    searches = Searches(steps, originals, GalleryFolder(folder))
    assert answer(searches, like=(Example(number=5),), k=1)["gallery_version"] == first
    second = gallery.build(folder, CODES, None, None, bits=64, fingerprint="cd" * 32, overwrite=True).version
    for _ in range(2):
        assert answer(searches, like=(Example(number=5),), k=1)["gallery_version"] == first
    (told,) = (record.getMessage() for record in caplog.records if "another model" in record.getMessage())
    assert told.endswith(f"another model than the Triton serves; the page goes on with version {first}")
    steps.version, steps.fingerprint, steps.since = second, "cd" * 32, "cd" * 32
    assert answer(searches, like=(Example(number=5),), k=1)["gallery_version"] == second


def test_a_gallery_of_another_model_than_triton_serves_is_refused_however_it_is_asked(originals, tmp_path):
    keys = [f"{number}.png" for number in range(300)]
    gallery.build(tmp_path / "gallery", CODES, None, keys, **SPACE)
    searches = Searches(Steps(fingerprint="cd" * 32), originals, GalleryFolder(tmp_path / "gallery"))
    file = (Example(file=CODES[5].tobytes()),)
    for asked in ({"like": file}, {"like": LIKE}, {"like": LIKE * 2}, {"like": LIKE, "after": Cursor(3, 4)}):
        with pytest.raises(ProblemError, match="belongs to another model than the Triton serves") as error:
            answer(searches, **asked)
        assert error.value.status == 409


def test_an_answer_of_a_model_that_is_served_since_a_moment_ago_is_refused(originals, tmp_path):
    gallery.build(tmp_path / "gallery", CODES, None, [f"{number}.png" for number in range(300)], **SPACE)
    steps = Steps("00000009-bbbbbbbb")
    searches = Searches(steps, originals, GalleryFolder(tmp_path / "gallery"))
    assert answer(searches, like=LIKE, k=1)["gallery_version"] == steps.version  # which this folder does not have yet
    steps.since = "cd" * 32
    for like in (LIKE, (Example(file=CODES[5].tobytes()),)):
        with pytest.raises(ProblemError, match="belongs to another model than the Triton serves"):
            answer(searches, like=like, k=1)


def test_a_stored_code_is_not_ranked_by_a_model_that_came_with_a_gallery_of_its_own_meanwhile(originals, tmp_path):
    keys = [f"{number}.png" for number in range(300)]
    steps = Steps(gallery.build(tmp_path / "gallery", CODES, None, keys, **SPACE).version)
    searches, rank = Searches(steps, originals, GalleryFolder(tmp_path / "gallery")), steps.rank

    async def switched(*arguments, **options):
        other = {**SPACE, "fingerprint": "cd" * 32}
        steps.version = gallery.build(tmp_path / "gallery", CODES[::-1], None, keys, **other, overwrite=True).version
        steps.since = steps.fingerprint = "cd" * 32
        return await rank(*arguments, **options)

    steps.rank = switched
    with pytest.raises(ProblemError, match="the codes are another model's") as error:
        answer(searches, like=(Example(key="5.png"),), k=1)
    assert error.value.status == 410


def test_readers_in_two_versions_do_not_make_the_folder_of_images_read_each_time(originals, monkeypatch):
    reads = []
    monkeypatch.setattr(originals, "refresh", lambda: reads.append(1) or len(reads) != 2)
    steps = Steps()
    searches = Searches(steps, originals, None)

    async def played():
        for version in ("00000001-aaaaaaaa", "00000002-bbbbbbbb") * 3:
            steps.version = version
            await searches.answer(Question(like=LIKE, k=1))
            await searches._teller._looking

    asyncio.run(played())
    assert len(reads) == 3  # the second time, the folder could not be read


def test_files_that_come_after_their_codes_are_found(tmp_path, monkeypatch):
    keys = [f"{number}.png" for number in range(300)]
    version = gallery.build(tmp_path / "gallery", CODES, None, keys, **SPACE).version
    (tmp_path / "images").mkdir()
    originals = Originals(tmp_path / "images")
    monkeypatch.setattr(originals_module, "_FRESH_SECONDS", 0)
    monkeypatch.setattr(originals_module, "_OLD_SECONDS", 0)
    monkeypatch.setattr(originals_module, "_OLD_READS", 0)
    searches = Searches(Steps(version), originals, GalleryFolder(tmp_path / "gallery"))

    async def played():
        async def shown():
            (image,) = (await searches.answer(Question(like=LIKE, k=1)))["images"]
            await searches._teller._looking
            return image["width"]

        assert await shown() is None
        Image.new("RGB", (9, 9)).save(tmp_path / "images" / "5.png")
        assert await shown() is None  # nobody waits for a folder that is read again
        assert await shown() == 9
        monkeypatch.setattr(originals, "refresh", lambda: pytest.fail("nothing is missed"))
        assert await shown() == 9

    asyncio.run(played())


def test_a_code_of_another_width_is_refused(originals):
    with pytest.raises(InputError, match=r"codes of 64 bits must be uint8 \[N, 8\]"):
        answer(Searches(Steps(), originals, None), like=(Example(code=b"123"),))


def test_explained_or_not_the_answer_is_the_same(originals):
    searches = Searches(Steps(), originals, None)
    like = (Example(file=CODES[9].tobytes()),)
    quick, explained = answer(searches, like=like, k=4), answer(searches, like=like, k=4, explain=True)
    assert quick["images"] == explained["images"]
    assert "logits" not in quick["query"]["like"][0]
    assert explained["query"]["like"][0]["logits"] == np.where(np.unpackbits(CODES[9]), 1.0, -1.0).tolist()
    assert quick["times"]["decode_ms"] is None
    assert explained["times"]["decode_ms"] is not None


def test_times_are_milliseconds():
    assert Times(decode=0.0123456).to_dict() == {
        "decode_ms": 12.346,
        "encode_ms": None,
        "rank_ms": None,
        "total_ms": None,
    }


def test_sizes_that_nobody_waits_for_are_not_read(originals):
    stop = threading.Event()
    stop.set()
    originals.read_sizes(["a.png"], stop)
    assert originals._sizes == {}
    stop.clear()
    originals.read_sizes(["a.png"], stop)
    assert originals._sizes == {"a.png": None}


@pytest.mark.parametrize("kind", [kind for kind in SLOW if kind in FORMATS])
def test_a_region_of_a_file_that_is_slow_to_open_is_refused_while_another_is_answered(originals, kind):
    searches = Searches(Steps(), originals, None)
    searches._decoders = Decoders(2, seconds=0.2)
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, "PNG")
    box = (0.0, 0.0, 1.0, 1.0)

    async def both():
        slow = asyncio.ensure_future(searches._cut(SLOW[kind], box))
        good = await searches._cut(file.getvalue(), box)
        with pytest.raises(InputError, match=r"^image: the image takes too long to decode"):
            await slow
        return good

    assert asyncio.run(both()).startswith(b"\x89PNG")
    searches.close()


def test_an_id_says_which_of_the_images_with_one_key_is_meant(originals, tmp_path):
    keys = [f"{number % 100}.png" for number in range(300)]
    version = gallery.build(tmp_path / "gallery", CODES, None, keys, **SPACE).version
    searches = Searches(Steps(version), originals, GalleryFolder(tmp_path / "gallery"))
    for asked, meant in (
        (Example(key="5.png"), 5),
        (Example(key="5.png", number=205), 205),
        (Example(key="5.png", number=206), 5),  # another image by now
        (Example(key="5.png", number=999), 5),
        (Example(number=205), 205),
    ):
        found = answer(searches, like=(asked,), k=1)["query"]["like"][0]
        assert found == {"id": meant, "key": "5.png", "code": CODES[meant].tobytes().hex()}
    with pytest.raises(ProblemError, match=r"no image has the key 'none\.png'"):
        answer(searches, like=(Example(key="none.png", number=205),))
