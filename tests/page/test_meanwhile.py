"""Something else happens before an answer comes: another question, the way back, an outage."""

import pytest
from visitor import expected, give, settled, shown, until
from web_world import CODES, IMAGES, KEYS, png

# What the page sends is noted in ``asked``; ``broken`` answers 503 to what it chooses, and ``held`` keeps it waiting.
# After an outage the page looks every 2 s; here it looks every 100 ms.
BETWEEN = """
const later = setTimeout;
window.setTimeout = (run, wait) => later(run, wait === 2000 ? 100 : wait);
const send = fetch;
window.asked = [];
window.fetch = async (path, options = {}) => {
  const body = typeof options.body === "string" ? JSON.parse(options.body) : {};
  asked.push([path, options.body]);
  if (window.broken?.(path, body)) return Response.json({ detail: "it is broken" }, { status: 503 });
  while (window.held?.(path, body)) await new Promise((done) => later(done, 20));
  return send(path, options);
};"""
SEARCHES = "asked.filter(([path]) => path === '/v1/search')"
PICTURES = "[...document.querySelectorAll('.card img')].filter((each) => each.naturalWidth).length"


@pytest.fixture
def tab(tab):
    tab.add_init_script(BETWEEN)
    return tab


@pytest.fixture
def banner(tab):
    return tab.get_by_role("alert").filter(has_text="No answer: it is broken")


def do(tab, script):
    tab.evaluate(f"() => {{ {script} }}")


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


def test_an_outage_while_paging_does_not_keep_the_next_search_from_going_on(tab, banner):
    tab.add_init_script("window.broken = (path, body) => body.after;")
    tab.goto(f"/?like=key:{KEYS[7]}&k=20")
    found = shown(tab)
    banner.wait_for()
    do(tab, "window.broken = (path) => path === '/v1/search' || path === '/v1/gallery'")
    tab.locator(".card .pick").nth(3).click()
    until(tab, "!document.querySelector('.card')")
    do(tab, "window.broken = null")
    banner.wait_for(state="hidden")
    assert shown(tab) == expected(CODES[KEYS.index(found[3][1])])


def test_an_answer_ends_the_outage(tab, banner):
    tab.add_init_script("window.broken = (path, body) => body.after;")
    tab.goto(f"/?like=key:{KEYS[7]}&k=20")
    settled(tab)
    banner.wait_for()
    do(tab, "window.broken = (path) => path === '/v1/gallery'")  # the look whether it is back never ends it
    tab.locator(".card .pick").nth(3).click()
    banner.wait_for(state="hidden")


def test_pictures_that_an_outage_kept_away_come_after_it(tab, banner):
    tab.add_init_script("window.broken = (path) => path === '/v1/thumbnails';")
    tab.goto(f"/?like=key:{KEYS[7]}&k=20")
    settled(tab)
    banner.wait_for()
    assert tab.evaluate(PICTURES) == 0
    do(tab, "window.broken = null")
    until(tab, f"{PICTURES} >= 20")


def test_two_filters_that_are_chosen_at_once_both_count(tab):
    tab.goto(f"/?like=key:{KEYS[7]}&k=20")
    settled(tab)
    tab.get_by_role("button", name="Filters").click()
    do(tab, "window.held = (path) => path.startsWith('/v1/facets')")
    tab.locator("[data-value='shelf=3']").check()
    tab.wait_for_url("**where.shelf=3*")
    tab.locator("[data-value='parity=odd']").check()
    tab.wait_for_url("**where.shelf=3&where.parity=odd*")


def test_who_filters_by_keyboard_goes_on_from_the_same_filter(tab):
    tab.goto(f"/?like=key:{KEYS[7]}&k=20")
    settled(tab)
    tab.get_by_role("button", name="Filters").click()
    tab.locator("[data-value='shelf=3']").focus()
    do(tab, "document.activeElement.isOld = true")
    tab.keyboard.press("Space")
    until(tab, "!document.querySelector(\"[data-value='shelf=3']\").isOld")
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
    tab.wait_for_url(lambda url: KEYS[7] not in url)
    settled(tab)
    until(tab, "(scrollTo(0, 1200), scrollY === 1200)")
    until(tab, "Math.abs((history.state?.y ?? 0) - 1200) < 5")
    tab.go_back()
    until(tab, "scrollY === 0 && document.querySelector('.card')")
    tab.go_forward()
    until(tab, "Math.abs(scrollY - 1200) < 250 && document.querySelector('.card')")


def test_the_way_to_the_images_is_no_search(tab):
    tab.goto(f"/?like=key:{KEYS[7]}&k=20")
    settled(tab)
    before = len(tab.evaluate(SEARCHES + ".filter(([, body]) => !JSON.parse(body).after)"))
    tab.locator(".skip").focus()
    tab.keyboard.press("Enter")
    until(tab, "location.hash === '#main' && document.activeElement.id === 'main'")
    assert len(tab.evaluate(SEARCHES + ".filter(([, body]) => !JSON.parse(body).after)")) == before


def test_the_way_back_closes_the_details(tab):
    tab.goto(f"/?like=key:{KEYS[7]}&k=20")
    settled(tab)
    tab.locator(".card .pick").nth(3).click()
    tab.wait_for_url(lambda url: KEYS[7] not in url)
    settled(tab)
    tab.locator(".card .pick").first.focus()
    tab.keyboard.press("i")
    tab.locator("dialog[open]").wait_for()
    tab.go_back()
    tab.wait_for_url(f"**{KEYS[7].replace('/', '%2F')}*")
    until(tab, "!document.querySelector('dialog[open]')")


def test_an_outage_on_the_page_gallery_is_said_and_passes(tab, banner):
    tab.goto("/gallery")
    until(tab, "document.querySelector('#duplicates li')")
    do(tab, "window.broken = (path) => path.includes('duplicates')")
    tab.locator("#near-radius").fill("3")
    tab.locator("#near-radius").blur()
    banner.wait_for()
    do(tab, "window.broken = null")
    banner.wait_for(state="hidden")
    tab.locator("#near-status", has_text="group").wait_for()
