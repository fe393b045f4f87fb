"""Something behind the page breaks and comes back."""

import pytest
from between import BETWEEN, FIRST_PAGES, PICTURES, SEARCHES, do
from breakable import Breakable
from visitor import expected, settled, shown, until
from web_world import CODES, KEYS


@pytest.fixture
def breakable(web_triton):
    way = Breakable(web_triton.url)
    yield way
    way.cut()


@pytest.fixture
def tab(tab):
    tab.add_init_script(BETWEEN)
    return tab


@pytest.fixture
def banner(tab):
    return tab.get_by_role("alert").filter(has_text="No answer: it is broken")


def test_a_broken_server_is_said_and_its_return_goes_on_with_the_search(browser, web_world, breakable):
    with web_world.page(breakable.url, timeout=2) as page:
        tab = browser.new_page(base_url=page.url)
        tab.goto("/")
        settled(tab)
        breakable.cut()
        tab.locator(".card .pick").nth(2).click()
        banner = tab.get_by_role("alert")
        banner.filter(has_text="No answer: ").wait_for()
        assert "Triton" in banner.inner_text()
        breakable.mend()
        banner.wait_for(state="hidden")
        assert shown(tab, 1)[0][0] == 0
        tab.goto(f"/?like=key:{KEYS[7]}")
        assert shown(tab) == expected(CODES[7])
        tab.close()


def test_a_page_whose_own_server_is_gone_says_so(browser, web_world, web_triton):
    with web_world.page(web_triton.url) as page:
        tab = browser.new_page(base_url=page.url)
        tab.goto("/")
        settled(tab)
    tab.locator(".card .pick").nth(2).click()
    tab.get_by_role("alert").filter(has_text="this page's server does not answer").wait_for()
    tab.close()


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


def test_pictures_that_an_outage_kept_away_come_with_the_next_answer(tab, banner):
    tab.add_init_script(
        "window.broken = (path) => path === '/v1/thumbnails';"
        "window.held = (path, body) => body.after && !window.released;"
    )
    tab.goto(f"/?like=key:{KEYS[7]}&k=20")
    until(tab, f"{SEARCHES}.length === 2")
    banner.wait_for()
    do(tab, "window.broken = (path) => path === '/v1/gallery'; window.released = true")  # the look never ends it
    until(tab, f"{PICTURES} >= 30 && {PICTURES} === document.querySelectorAll('.card').length")
    assert banner.is_hidden()


def test_filters_that_an_outage_kept_away_come_after_it_and_the_reader_stays_where_he_is(tab, banner):
    tab.add_init_script("window.broken = (path) => path.startsWith('/v1/facets');")
    tab.goto(f"/?like=key:{KEYS[7]}&k=100")
    banner.wait_for()
    until(tab, "(scrollTo(0, 1500), scrollY === 1500) && document.querySelector('.card[data-index=\"110\"]')")
    do(tab, "window.broken = null")
    tab.locator("#columns input").first.wait_for(state="attached")
    assert len(tab.evaluate(FIRST_PAGES)) == 1
    assert tab.evaluate("Math.abs(scrollY - 1500) < 250")


def test_who_goes_on_from_a_card_by_keyboard_is_at_the_first_one_after_an_outage_too(tab, banner):
    tab.goto(f"/?like=key:{KEYS[7]}&k=20")
    settled(tab)
    tab.locator(".card .pick").nth(3).focus()
    do(tab, "window.broken = (path) => path === '/v1/search'")
    tab.keyboard.press("Enter")
    banner.wait_for()
    do(tab, "window.broken = null")
    until(tab, "document.activeElement.closest('.card')?.dataset.index === '0'")


def test_what_is_typed_and_looked_at_during_an_outage_stays_when_it_ends(tab, banner):
    tab.add_init_script("window.broken = (path) => path === '/v1/search';")
    tab.goto(f"/?like=key:{KEYS[7]}&k=20")
    banner.wait_for()
    tab.locator(".example .face").click()
    tab.locator("dialog[open]").wait_for()
    do(tab, "document.getElementById('radius').value = '12'")  # typed, and Enter not yet pressed
    do(tab, "window.broken = null")
    until(tab, "document.querySelector('.card')")
    settled(tab)
    assert tab.locator("#radius").input_value() == "12"
    assert tab.locator("dialog[open]").count() == 1


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
