"""Something else happens before an answer comes: another question, the way back, another place on the page."""

import json

import pytest
from between import BETWEEN, FIRST_PAGES, SEARCHES, do
from visitor import expected, give, settled, shown, until
from web_world import CODES, IMAGES, KEYS, png

HERE = KEYS[7].replace("/", "%2F")  # as an address says it


@pytest.fixture
def tab(tab):
    tab.add_init_script(BETWEEN)
    return tab


def test_a_page_that_is_on_its_way_is_not_asked_for_again(tab):
    tab.add_init_script("window.held = (path, body) => body.after && !window.released;")
    tab.goto(f"/?like=key:{KEYS[7]}&k=20")
    tab.locator("#columns input").first.wait_for(state="attached")  # the filters come before the next page
    until(tab, f"{SEARCHES}.length === 2")
    do(tab, "scrollBy(0, 100)")
    do(tab, "window.released = true")
    until(tab, "document.querySelectorAll('.card').length > 40")
    bodies = [body for _, body in tab.evaluate(SEARCHES)]
    assert len(set(bodies)) == len(bodies)


@pytest.mark.parametrize("held", ["path === '/v1/search'", "body.after"], ids=["first page", "next page"])
def test_what_is_no_image_is_said_until_something_is_done_whatever_answers_come(tab, held):
    said = "Nothing to search by: given-0.png is empty."
    tab.add_init_script(f"window.held = (path, body) => {held} && !window.released;")
    tab.goto(f"/?like=key:{KEYS[7]}&k=20")
    until(tab, f"{SEARCHES}.length === {2 if held == 'body.after' else 1}")
    give(tab, b"")
    until(tab, f"document.getElementById('status').textContent === '{said}'")
    do(tab, "window.released = true")
    until(tab, f"document.querySelectorAll('.card').length >= {40 if held == 'body.after' else 20}")
    assert tab.locator("#status").inner_text() == said
    tab.locator(".card .pick").nth(3).click()
    until(tab, "/^\\d+ images/.test(document.getElementById('status').textContent)")


def test_why_there_are_no_filters_is_said_whatever_answers_come(tab):
    tab.add_init_script(
        "window.broken = (path) => path.startsWith('/v1/facets') && 400;"
        "window.held = (path, body) => body.after && !window.released;"
    )
    tab.goto(f"/?like=key:{KEYS[7]}&k=20")
    tab.locator(".status.wrong", has_text="it is broken").wait_for()
    do(tab, "window.released = true")
    until(tab, "document.querySelectorAll('.card').length >= 40")
    assert tab.locator(".status.wrong").inner_text() == "it is broken"


def test_an_answer_takes_nobody_away_from_what_he_does_by_then(tab):
    tab.goto(f"/?like=key:{KEYS[7]}&k=20")
    settled(tab)
    tab.locator(".card .pick").nth(3).focus()
    do(tab, "window.held = (path) => path === '/v1/search'")
    tab.keyboard.press("Enter")
    tab.locator("#radius").focus()
    do(tab, "window.held = null")
    until(tab, "document.querySelector('.card')")
    settled(tab)
    assert tab.evaluate("document.activeElement.id") == "radius"


@pytest.mark.parametrize("example", [f"key:{KEYS[7]}", "id:7"], ids=["as it was", "with a picture now"])
def test_an_answer_leaves_the_focus_in_the_tray(tab, example):
    tab.add_init_script("window.held = (path, body) => path === '/v1/search' && !window.released;")
    tab.goto(f"/?like={example}&unlike=id:300&k=20")
    tab.locator(".example .sign").first.focus()
    do(tab, "window.released = true")
    until(tab, "document.querySelector('.card')")
    settled(tab)
    assert tab.evaluate("document.activeElement === document.querySelector('.example .sign')")
    tab.locator(".example .remove").first.focus()
    tab.keyboard.press("Enter")
    until(tab, "document.querySelectorAll('.example').length === 1")
    assert tab.evaluate("document.activeElement === document.querySelector('.example .remove')")


def test_a_surprise_comes_though_the_gallery_was_not_known_yet(tab):
    tab.add_init_script("window.held = (path, body) => path === '/v1/gallery' && !window.released;")
    tab.goto("/")
    tab.get_by_role("button", name="Surprise me").click()
    do(tab, "window.released = true")
    tab.wait_for_url("**/?like=id*")
    assert shown(tab, 1)[0][0] == 0


def test_the_details_of_an_example_need_no_answer(tab):
    tab.add_init_script("window.held = (path) => path === '/v1/gallery';")
    tab.goto(f"/?like=key:{KEYS[7]}")
    tab.locator(".example .face").click()
    tab.locator(".bits .logit").first.wait_for()
    assert tab.locator(".bits .bit").count() == 64


def test_a_box_waits_for_its_image_and_stays_on_its_place(tab):
    coming = []
    tab.route("**/v1/images/**", lambda route: coming.append(route))
    tab.goto(f"/?like=key:{KEYS[7]}&k=20")
    settled(tab)
    tab.locator(".card .pick").first.focus()
    tab.keyboard.press("i")
    stage = tab.locator(".stage").bounding_box()
    tab.mouse.move(stage["x"] + stage["width"] / 2, stage["y"] + 20)
    tab.mouse.down()
    tab.mouse.move(stage["x"] + stage["width"] / 2 + 40, stage["y"] + 90)
    tab.mouse.up()
    assert tab.locator(".box").is_hidden()
    tab.locator(".stage").focus()
    tab.keyboard.press("b")
    while not coming:
        tab.wait_for_timeout(20)
    coming[0].continue_()
    for width in (1280, 390):
        tab.set_viewport_size({"width": width, "height": 844})
        until(
            tab,
            """(() => {
              const place = (selector) => document.querySelector(selector).getBoundingClientRect();
              const [box, image] = [place(".box"), place(".stage img")];
              const near = (one, other) => Math.abs(one - other) < 2;
              return near(box.left, image.left + image.width / 4) && near(box.bottom, image.bottom - image.height / 4);
            })()""",
        )


def test_the_second_click_of_a_double_one_does_nothing_to_what_came_after_the_first(tab):
    tab.goto(f"/?like=key:{KEYS[7]}&like=key:{KEYS[40]}&like=key:{KEYS[300]}&k=20")
    settled(tab)
    for target in (tab.locator(".example .remove").first, tab.locator(".card .pick").nth(3)):
        place = target.bounding_box()
        tab.mouse.move(place["x"] + 8, place["y"] + 8)
        addresses = [tab.url]
        for count in (1, 2):
            tab.mouse.down(click_count=count)
            tab.mouse.up(click_count=count)
            settled(tab)
            addresses.append(tab.evaluate("location.href"))
        before, first, second = addresses
        assert before != first == second


def test_the_invitation_to_drop_goes_away_though_cards_were_drawn_under_what_is_dragged(tab):
    tab.goto("/")
    is_shown = tab.evaluate(
        """() => {
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File(["x"], "x.png"));
        for (const kind of ["dragenter", "dragover"]) {
          document.body.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
        }
        return !document.getElementById("dropping").hidden;
        }""",
    )
    assert is_shown
    until(tab, "document.getElementById('dropping').hidden")


def test_a_browser_that_does_not_copy_is_no_success(tab):
    tab.goto("/")
    settled(tab)
    do(tab, "navigator.clipboard.writeText = () => Promise.reject(new DOMException('no', 'NotAllowedError'))")
    tab.get_by_role("button", name="Copy the link").click()
    tab.locator(".status.wrong", has_text="does not let this page copy").wait_for()


def test_two_filters_that_are_chosen_at_once_both_count(tab):
    tab.goto(f"/?like=key:{KEYS[7]}&k=20")
    settled(tab)
    tab.get_by_role("button", name="Filters").click()
    do(tab, "window.held = (path) => path.startsWith('/v1/facets')")
    tab.locator("[data-value='shelf=3']").check()
    tab.wait_for_url("**where.shelf=3*")
    tab.locator("[data-value='parity=odd']").check()
    tab.wait_for_url("**where.shelf=3&where.parity=odd*")


def test_a_filter_that_is_being_pressed_is_chosen_though_the_counts_come_just_then(tab):
    tab.goto(f"/?like=key:{KEYS[7]}&where.parity=odd&k=20")
    settled(tab)
    tab.locator("[data-value='shelf=3']").wait_for()
    do(tab, "window.held = (path) => path.startsWith('/v1/facets')")
    tab.locator("[data-value='parity=odd']").uncheck()
    settled(tab)
    place = tab.locator("[data-value='shelf=4']").bounding_box()
    tab.mouse.move(place["x"] + 5, place["y"] + 5)
    tab.mouse.down()
    count = "document.querySelector('.facet:has([data-value=\"shelf=4\"]) .count').textContent"
    before = tab.evaluate(count)
    do(tab, "window.held = null")
    until(tab, f"{count} !== '{before}'")
    tab.mouse.up()
    tab.wait_for_url("**?like=*where.shelf=4")


def test_who_filters_by_keyboard_goes_on_from_the_same_filter(tab):
    tab.goto(f"/?like=key:{KEYS[7]}&k=20")
    settled(tab)
    tab.get_by_role("button", name="Filters").click()
    count = "document.querySelector('.facet:has([data-value=\"parity=odd\"]) .count').textContent"
    tab.locator("[data-value='shelf=3']").focus()
    before = tab.evaluate(count)
    tab.keyboard.press("Space")
    until(tab, f"{count} !== '{before}'")
    assert tab.evaluate("document.activeElement.dataset.value") == "shelf=3"


def test_an_upload_that_was_left_before_its_answer_is_found_again(tab):
    tab.goto("/")
    settled(tab)
    do(tab, "window.held = (path, body) => path.endsWith('/v1/search')")
    give(tab, png(IMAGES[7]))
    tab.wait_for_url("**/?like=upload*")
    tab.go_back()
    until(tab, "!location.search")
    tab.go_forward()
    tab.wait_for_url("**/?like=upload*")
    do(tab, "window.held = null")
    tab.wait_for_url("**/?like=code*")
    assert shown(tab) == expected(CODES[7])


def test_the_place_is_kept_by_who_leaves_before_it_is_shown_again(tab):
    tab.goto(f"/?like=key:{KEYS[7]}&k=100")
    settled(tab)
    until(tab, "(scrollTo(0, 1500), scrollY === 1500) && document.querySelector('.card[data-index=\"130\"]')")
    tab.locator('.card[data-index="130"] .pick').click()
    until(tab, "scrollY === 0 && document.querySelector('.card')")
    do(tab, "window.held = (path) => path === '/v1/search'")
    tab.go_back()
    until(tab, "!document.querySelector('.card')")
    tab.locator("#radius").fill("30")
    tab.locator("#radius").blur()
    tab.wait_for_url("**radius=30*")
    do(tab, "window.held = null")
    settled(tab)
    tab.go_back()
    until(tab, "Math.abs(scrollY - 1500) < 250 && document.querySelector('.card[data-index=\"130\"]')")
    tab.reload()
    until(tab, "Math.abs(scrollY - 1500) < 250 && document.querySelector('.card[data-index=\"130\"]')")


def test_the_way_forward_leads_to_the_same_place(tab):
    tab.goto(f"/?like=key:{KEYS[7]}&k=100")
    settled(tab)
    tab.locator(".card .pick").nth(5).click()
    tab.wait_for_url(lambda url: HERE not in url)
    settled(tab)
    until(tab, "(scrollTo(0, 1200), scrollY === 1200)")
    until(tab, "Math.abs((history.state?.y ?? 0) - 1200) < 5")
    tab.go_back()
    until(tab, "scrollY === 0 && document.querySelector('.card')")
    tab.go_forward()
    until(tab, "Math.abs(scrollY - 1200) < 250 && document.querySelector('.card')")


@pytest.mark.parametrize("address", [f"/?like=key:{KEYS[7]}&k=20", "/?k=50"], ids=["usual", "longer than it need be"])
def test_the_way_to_the_images_is_no_search(tab, address):
    tab.goto(address)
    settled(tab)
    before = len(tab.evaluate(FIRST_PAGES))
    tab.locator(".skip").focus()
    tab.keyboard.press("Enter")
    until(tab, "location.hash === '#main' && document.activeElement.id === 'main'")
    assert len(tab.evaluate(FIRST_PAGES)) == before


def test_the_way_back_closes_the_details_and_then_leads_back(tab):
    tab.goto(f"/?like=key:{KEYS[7]}&k=20")
    settled(tab)
    tab.locator(".card .pick").nth(3).click()
    tab.wait_for_url(lambda url: HERE not in url)
    settled(tab)
    tab.locator(".card .pick").first.focus()
    tab.keyboard.press("i")
    tab.locator("dialog[open]").wait_for()
    do(tab, "history.back()")
    tab.locator("dialog[open]").wait_for(state="detached")
    assert HERE not in tab.url
    do(tab, "history.back()")
    tab.wait_for_url(f"**{HERE}*")


def test_the_page_gallery_leads_on_though_the_gallery_was_not_known_yet(tab):
    tab.add_init_script("window.held = (path, body) => path === '/v1/gallery' && !window.released;")
    tab.goto("/gallery")
    tab.get_by_role("button", name="Browse from a random code").click()
    do(tab, "window.released = true")
    tab.wait_for_url("**/?like=code*")


OTHER = "cd" * 32  # the model before


@pytest.fixture
def before(tab):
    """A tab that was opened while another model was served."""

    def of_other(route):
        said = route.fetch().json()
        route.fulfill(json=said | {"fingerprint": OTHER})

    def as_other(route):
        body = json.loads(route.request.post_data)
        assert body.pop("fingerprint") == OTHER
        route.continue_(post_data=json.dumps(body))

    tab.route("**/v1/gallery", of_other)
    tab.route("**/v1/search", as_other)
    tab.goto(f"/?like=key:{KEYS[7]}&k=20")
    settled(tab)
    tab.unroute_all()
    return tab


def test_after_a_change_of_the_model_nothing_is_asked_by_a_code_of_the_one_before(before):
    tab, bodies = before, []
    tab.on("request", lambda asked: bodies.append(asked.post_data_json) if asked.url.endswith("/v1/search") else None)
    tab.locator(".card .pick").nth(3).click()
    tab.get_by_role("button", name="Search again").click()
    settled(tab)
    first, again = [body for body in bodies if "after" not in body]
    assert (first["fingerprint"], *first["like"][0]) == (OTHER, "code")
    assert again["fingerprint"] != OTHER
    assert set(again["like"][0]) == {"id", "key"}


def test_a_file_that_is_given_after_a_change_of_the_model_is_encoded_by_the_new_one(before):
    give(before, png(IMAGES[7]))
    before.get_by_role("button", name="Search again").click()
    settled(before)
    assert f"like=code%3A{CODES[7].tobytes().hex()}&model=" in before.url
    assert OTHER not in before.url


def test_a_link_to_a_code_names_its_model_and_is_refused_by_another(tab):
    code = CODES[7].tobytes().hex()
    tab.goto(f"/?like=code:{code}&k=20")
    settled(tab)
    assert "&model=" in tab.url
    tab.goto(f"/?like=code:{code}&model={'cd' * 32}&k=20")
    tab.locator(".status.wrong", has_text="a code of another model").wait_for()
    assert tab.locator(".card").count() == 0
