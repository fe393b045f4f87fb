"""A visitor searches: every way in, what is found, and the way on."""

import csv
import re

import pytest
from visitor import expected, give, settled, shown, until
from web_world import CODES, COUNT, HOSTILE, HOSTILE_FROM, IMAGES, KEYS, in_order, png

from dmsh_serving.web import app

SCROLL = """async () => {
  const seen = new Map();
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
  for (;;) {
    for (const card of document.querySelectorAll(".card")) {
      const key = card.querySelector(".key").textContent;
      const before = seen.get(card.dataset.index);
      if (before !== undefined && before !== key) throw new Error(`card ${card.dataset.index} changed`);
      seen.set(card.dataset.index, key);
    }
    const bottom = scrollY + innerHeight >= document.documentElement.scrollHeight - 2;
    if (bottom && document.getElementById("end").textContent) break;
    scrollBy(0, innerHeight);
    await frame();
  }
  const drawn = document.querySelectorAll(".card").length;
  return [[...seen].sort((a, b) => a[0] - b[0]).map(([, key]) => key), drawn];
}"""


def test_a_dropped_image_shows_its_neighbours_and_a_click_searches_on(tab):
    tab.goto("/")
    settled(tab)
    give(tab, png(IMAGES[7]))
    tab.wait_for_url("**/?like=code*")
    found = shown(tab)
    assert found == expected(CODES[7])
    tab.locator(".card .pick").nth(3).click()
    tab.wait_for_url("**/?like=id*")
    assert shown(tab) == expected(CODES[KEYS.index(found[3][1])])
    tab.go_back()
    tab.wait_for_url("**/?like=code*")
    assert shown(tab) == found
    tab.go_back()
    tab.locator("#hero").wait_for()
    assert tab.locator(".example").count() == 0


def test_every_card_has_its_picture_however_few_an_answer_brings(tab, monkeypatch):
    monkeypatch.setattr(app, "MOST_ROW_BYTES", 1)
    tab.goto(f"/?like=key:{KEYS[7]}&k=20")
    until(tab, "document.querySelectorAll('.card img[src^=data]').length >= 20")
    assert shown(tab) == expected(CODES[7])


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_several_images_count_together(tab, how):
    tab.goto("/")
    settled(tab)
    give(tab, png(IMAGES[7]), png(IMAGES[300]), how=how)
    tab.wait_for_url("**/?like=code*&like=code*")
    assert shown(tab) == expected(CODES[7], CODES[300])
    assert tab.locator(".example").count() == 2


def test_images_are_chosen_from_files_and_a_phone_is_offered_its_camera(tab, tmp_path):
    (tmp_path / "a.png").write_bytes(png(IMAGES[40]))
    tab.goto("/")
    settled(tab)
    with tab.expect_file_chooser() as chooser:
        tab.get_by_role("button", name="Choose images").click()
    assert chooser.value.is_multiple()
    chooser.value.set_files(tmp_path / "a.png")
    tab.wait_for_url("**/?like=code*")
    assert shown(tab) == expected(CODES[40])
    assert tab.locator("#camera").get_attribute("capture") == "environment"


def test_what_is_no_image_is_said_and_the_page_goes_on(tab):
    tab.goto("/")
    settled(tab)
    give(tab, b"%PDF-1.7 not an image")
    tab.locator(".status.wrong", has_text="PDF is not accepted").wait_for()
    give(tab)
    tab.locator(".status.wrong", has_text="An address is never fetched").wait_for()
    give(tab, png(IMAGES[7]))
    tab.wait_for_url("**/?like=code*")
    assert shown(tab) == expected(CODES[7])


def test_more_like_this_and_less_like_that_change_the_order(tab):
    tab.goto(f"/?like=key:{KEYS[7]}")
    settled(tab)
    tab.locator(".card").nth(5).hover()
    tab.locator(".card").nth(5).locator("[data-act=onMore]").click()
    tab.wait_for_url("**like=*like=*")
    added = KEYS.index(expected(CODES[7])[5][1])
    assert shown(tab) == expected(CODES[7], CODES[added])
    tab.locator(".example .sign").first.click()
    tab.wait_for_url("**?unlike=*&like=*")  # each keeps its place
    assert shown(tab) == expected(CODES[added], unlike=[CODES[7]])
    tab.locator(".example .remove").first.click()
    until(tab, "!location.search.includes('unlike')")
    assert shown(tab) == expected(CODES[added])


def test_the_heading_says_what_is_shown_and_in_which_order(tab):
    first, second, third = KEYS[7], KEYS[300], KEYS[40]
    for query, heading in (
        (f"like=key:{first}", f"Images like {first}, nearest first"),
        (f"unlike=key:{first}", f"Images least like {first}, farthest first"),
        (
            f"like=key:{first}&like=key:{second}&unlike=key:{third}",
            f"Images like {first} and {second} and unlike {third}, smallest difference of distances first",
        ),
    ):
        tab.goto(f"/?{query}")
        settled(tab)
        assert tab.locator("#lead").inner_text() == heading
    tab.goto(f"/?unlike=key:{first}")
    farthest = in_order([], [CODES[7]])[0]
    assert shown(tab, 1) == [[-farthest[0], KEYS[farthest[1]]]]


def test_a_file_that_is_no_image_is_left_out_by_name_and_takes_nothing_away(tab):
    tab.goto(f"/?like=key:{KEYS[7]}")
    before = shown(tab)
    give(tab, b"")
    until(tab, "/given-0.png is empty/.test(document.getElementById('status').textContent)")
    assert shown(tab) == before
    give(tab, png(IMAGES[300]), b"")
    until(tab, "/left out: given-1.png is empty/.test(document.getElementById('status').textContent)")
    assert shown(tab) == expected(CODES[300])
    give(tab, b"no image")
    until(tab, "/^given-0.png: /.test(document.getElementById('status').textContent)")
    assert tab.locator("#lead").inner_text() == ""  # nothing is shown that it could be the heading of


def of_a_region(response):
    """Tell the answer to a region from those to the pages that scrolling asks for."""
    return response.url.endswith("/v1/search") and '"box"' in (response.request.post_data or "")


def test_a_box_searches_by_a_region(tab, web_page):
    tab.goto(f"/?like=key:{KEYS[7]}")
    settled(tab)
    tab.locator(".card").nth(2).hover()
    tab.locator(".card").nth(2).locator("[data-act=onDetails]").click()
    image = tab.locator(".stage img")
    image.wait_for()
    until(tab, "document.querySelector('.stage img').naturalWidth > 0")
    frame = image.bounding_box()
    tab.mouse.move(frame["x"] + 4, frame["y"] + 4)
    tab.mouse.down()
    tab.mouse.move(frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2)
    tab.mouse.up()
    with tab.expect_response(of_a_region) as sent:
        tab.get_by_role("button", name="Search this region").click()
    box = sent.value.request.post_data_json["like"][0]["box"]
    assert box == pytest.approx([4 / frame["width"], 4 / frame["height"], 0.5, 0.5], abs=0.03)
    tab.wait_for_url("**/?like=box*")
    found = shown(tab)
    with tab.expect_response(of_a_region) as sent:
        tab.reload()  # the address brings it back, and an edge one pixel further would be another code
    assert sent.value.request.post_data_json["like"][0]["box"] == box
    assert shown(tab) == found
    assert tab.locator(".example .cut img").count() == 1


def test_a_box_is_drawn_with_the_keyboard(tab):
    tab.goto(f"/?like=key:{KEYS[7]}")
    settled(tab)
    tab.locator(".card .pick").first.focus()
    tab.keyboard.press("i")
    tab.locator(".stage").focus()
    tab.keyboard.press("b")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("Shift+ArrowDown")
    with tab.expect_response(of_a_region) as sent:
        tab.get_by_role("button", name="Search this region").click()
    assert sent.value.request.post_data_json["like"][0]["box"] == pytest.approx([0.23, 0.25, 0.5, 0.52])


def test_details_say_which_bits_differ(tab):
    tab.goto(f"/?like=key:{KEYS[7]}")
    found = shown(tab)
    tab.locator(".card .pick").nth(4).focus()
    tab.keyboard.press("i")
    other = KEYS.index(found[4][1])
    different = [int(bit) for bit in (bin(int.from_bytes(CODES[7] ^ CODES[other]))[2:].zfill(64))]
    places = [str(place) for place, bit in enumerate(different) if bit]
    tab.locator(".bits figcaption", has_text=f"{len(places)} of 64 bits differ: {', '.join(places)}").wait_for()
    assert tab.locator(".bit.differs").count() == 2 * len(places)
    tab.locator(".bits .logit").first.wait_for()
    assert tab.locator(".bits .logit").count() == 2 * 64
    tab.keyboard.press("Escape")
    tab.locator("dialog[open]").wait_for(state="detached")


def test_details_say_how_a_sum_of_distances_comes_about(tab):
    tab.goto(f"/?like=key:{KEYS[7]}&unlike=key:{KEYS[40]}&like=id:300")
    score, key = shown(tab)[4]
    tab.locator(".card .pick").nth(4).focus()
    tab.keyboard.press("i")
    codes = [int.from_bytes(CODES[number]) for number in (KEYS.index(key), 7, 40, 300)]
    first, second, third = [(codes[0] ^ code).bit_count() for code in codes[1:]]
    assert first - second + third == score
    assert tab.locator("dialog table tr").all_inner_texts() == [
        f"like {KEYS[7]}\t+ {first}",
        f"unlike {KEYS[40]}\t− {second}",
        f"like {KEYS[300]}\t+ {third}",
        f"Sum\t{score}",
    ]


def test_more_like_this_means_the_region_that_is_drawn(tab):
    tab.goto(f"/?like=key:{KEYS[7]}")
    settled(tab)
    tab.get_by_text("Click an example to search by a part of it.").wait_for()
    tab.locator(".card .pick").nth(3).focus()
    tab.keyboard.press("i")
    tab.locator(".stage").focus()
    tab.keyboard.press("b")
    tab.get_by_role("button", name="Less like this region").wait_for()
    with tab.expect_response(of_a_region) as sent:
        tab.get_by_role("button", name="More like this region").click()
    whole, part = sent.value.request.post_data_json["like"]
    assert "box" not in whole
    assert part["box"] == [0.25, 0.25, 0.5, 0.5]
    tab.wait_for_url("**like=id*&like=box*")
    settled(tab)


def test_bits_fit_on_a_phone(tab):
    tab.set_viewport_size({"width": 375, "height": 700})
    tab.goto(f"/?like=key:{KEYS[7]}")
    settled(tab)
    tab.locator(".card .pick").nth(4).focus()
    tab.keyboard.press("i")
    tab.locator(".bits .logit").first.wait_for()
    assert tab.locator(".bits svg").count() == 2
    assert tab.evaluate("document.querySelector('dialog').scrollWidth <= document.querySelector('dialog').clientWidth")
    bits = tab.evaluate("[...document.querySelectorAll('.bit')].map((bit) => bit.getBoundingClientRect().toJSON())")
    assert all(bit["left"] > 0 and bit["right"] < 375 and bit["width"] > 5 for bit in bits)


def test_filters_keep_what_they_say_and_count_the_rest(tab):
    tab.goto(f"/?like=key:{KEYS[7]}&k=20")
    settled(tab)
    tab.get_by_role("button", name="Filters").click()
    shelf = tab.get_by_role("group", name="shelf")
    shelf.get_by_role("checkbox", name=re.compile(r"^3 ")).check()
    tab.wait_for_url("**where.shelf=3*")
    third = [number for number in range(COUNT) if number % 7 == 3]
    assert shown(tab) == expected(CODES[7], allowed=third)
    parity = tab.get_by_role("group", name="parity")
    even = sum(number % 2 == 0 for number in third)
    parity.get_by_role("checkbox", name=f"even {even:,}").wait_for()
    tab.locator("#ids").fill("3, 10, 17, 4")
    tab.locator("#ids").blur()
    tab.wait_for_url("**ids=*")
    assert shown(tab) == expected(CODES[7], allowed=[3, 10, 17])
    tab.get_by_role("button", name="Filters (2)").wait_for()
    tab.get_by_role("button", name="Clear filters").click()
    until(tab, "!/where|ids/.test(location.search)")
    assert shown(tab) == expected(CODES[7])


def test_filters_of_odd_names_and_values_hold_for_an_image_that_is_given(web_world, web_triton, browser, tmp_path):
    rows = [(key, number % 2, "two\nlines" if number % 3 else "one") for number, key in enumerate(KEYS)]
    with (tmp_path / "odd.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("key", 'size "in"', "note"), *rows])
    with web_world.page(web_triton.url, metadata=tmp_path / "odd.csv") as page:
        tab = browser.new_context(base_url=page.url).new_page()
        tab.goto("/?where.note=two%0Alines&where.size+%22in%22=0")
        settled(tab)
        give(tab, png(IMAGES[7]))
        tab.wait_for_url("**like=code*")
        allowed = [number for number in range(COUNT) if number % 3 and number % 2 == 0]
        assert shown(tab) == expected(CODES[7], allowed=allowed)
        tab.close()


def test_a_radius_keeps_what_is_near(tab):
    tab.goto(f"/?like=key:{KEYS[7]}")
    settled(tab)
    tab.locator("#radius").fill("12")
    tab.locator("#radius").blur()
    tab.wait_for_url("**radius=12*")
    settled(tab)
    near = sum(score <= 12 for score, _ in in_order([CODES[7]]))
    assert 1 < near < 5000
    tab.locator("#radius").fill("-1")
    tab.locator("#radius").blur()
    assert "radius=12" in tab.url


def test_scrolling_to_the_end_shows_each_of_10_000_images_once(tab):
    tab.goto(f"/?like=key:{KEYS[7]}&k=500")
    settled(tab)
    keys, drawn = tab.evaluate(SCROLL)
    assert keys == [key for _, key in expected(CODES[7], count=COUNT)]
    assert drawn < 400  # of 10,000: the rest is not in the document


def test_the_way_back_leads_to_the_same_place(tab):
    tab.goto(f"/?like=key:{KEYS[7]}&k=100")
    settled(tab)
    # As far as there is page already; more of it comes while one scrolls.
    until(tab, "(scrollTo(0, 1500), scrollY === 1500) && document.querySelector('.card[data-index=\"130\"]')")
    tab.locator('.card[data-index="130"] .pick').click()
    until(tab, "scrollY === 0 && document.querySelector('.card')")
    settled(tab)
    tab.go_back()
    until(tab, "Math.abs(scrollY - 1500) < 250 && document.querySelector('.card[data-index=\"130\"]')")


def test_the_keyboard_moves_through_the_cards_and_searches(tab):
    tab.goto(f"/?like=key:{KEYS[7]}")
    found = shown(tab, 40)
    tab.locator(".card .pick").first.focus()
    index = "Number(document.activeElement.closest('.card').dataset.index)"
    for key, place in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("Home", 0)):
        tab.keyboard.press(key)
        assert tab.evaluate(index) == place
    tab.keyboard.press("ArrowDown")
    below = tab.evaluate(index)
    assert below > 3
    tab.keyboard.press("Enter")
    tab.wait_for_url(lambda url: KEYS[7].replace("/", "%2F") not in url)
    assert shown(tab) == expected(CODES[KEYS.index(found[below][1])])
    assert tab.evaluate(index) == 0  # and goes on from there


def test_hostile_keys_are_text(tab):
    for number, key in enumerate(HOSTILE, HOSTILE_FROM):
        tab.goto(f"/?like=id:{number}&radius=0&ids={number}")
        assert shown(tab) == [[0, key]]
        tab.locator(".card .pick").click()
        tab.wait_for_url("**/?like=id*")
        assert shown(tab) == [[0, key]]
        tab.locator(".card .pick").focus()
        tab.keyboard.press("i")
        tab.locator("#details-title", has_text=key).wait_for()
        tab.locator(".bits .bit").first.wait_for()
        assert tab.evaluate("document.querySelectorAll('main img[onerror], dialog img[onerror]').length") == 0


def test_a_filter_may_have_any_name_also_one_that_scripts_know(tab, web_world, web_triton, tmp_path):
    tab.goto(f"/?like=key:{KEYS[7]}&where.__proto__=x&where.constructor=y")
    settled(tab)
    assert "'__proto__' is no filter" in tab.locator("#status").text_content()
    rows = [f'"{key.replace(chr(34), chr(34) * 2)}",{n % 2},{n % 3}' for n, key in enumerate(KEYS)]
    (tmp_path / "names.csv").write_text("key,__proto__,constructor\n" + "\n".join(rows) + "\n")
    with web_world.page(web_triton.url, metadata=tmp_path / "names.csv") as page:
        tab.goto(f"{page.url}?like=key:{KEYS[7]}&where.__proto__=1")
        assert shown(tab) == expected(CODES[7], allowed=range(1, COUNT, 2))
        tab.locator("[data-value='constructor=2']").check()
        tab.wait_for_url("**where.__proto__=1&where.constructor=2*")
        assert shown(tab) == expected(CODES[7], allowed=range(5, COUNT, 6))
        tab.locator("[data-value='__proto__=1']").uncheck()
        tab.wait_for_url("**7.png&where.constructor=2")
        assert shown(tab) == expected(CODES[7], allowed=range(2, COUNT, 3))
        tab.goto("about:blank")  # the page goes before the tab does


def test_a_surprise_is_an_image_of_the_gallery(tab):
    tab.goto("/")
    settled(tab)
    tab.get_by_role("button", name="Surprise me").click()
    tab.wait_for_url("**/?like=id*")
    assert shown(tab, 1)[0][0] == 0


def test_a_card_says_how_far_it_is_only_if_that_means_something(tab):
    tab.goto("/")
    settled(tab)
    assert tab.locator(".card .distance").first.is_hidden()  # from a random code
    tab.goto("/?like=id:300")
    same = sum(score == 0 for score, _ in in_order([CODES[300]]))
    assert shown(tab, same + 1) == expected(CODES[300], count=same + 1)
    assert tab.locator(".card .distance.same").count() == same
    first, next_one = tab.locator(".card .pick").first, tab.locator(".card .pick").nth(same)
    assert first.get_attribute("aria-label") == f"{KEYS[300]}, the same code: search by it"
    assert "of the code differ" in next_one.get_attribute("aria-label")
    tab.locator(".example img").wait_for()  # an example that is named by its id has its picture too
    assert tab.url.endswith("/?like=id%3A300")
