"""Everyone can use it: no violation that axe finds, three widths, dark and light, without a gallery's folder."""

import pytest
from visitor import expected, settled, shown, until
from web_world import CODES, KEYS

WIDTHS = (390, 820, 1280)
NEAR = "document.querySelector('#duplicates li') && document.querySelector('#balance rect')"


def violations(tab):
    """Return what axe finds in the light; in the dark nothing differs but colours."""
    from axe_playwright_python.sync_playwright import Axe

    found = []
    for theme, options in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
        tab.emulate_media(color_scheme=theme)
        found += Axe().run(tab, options={**options, "resultTypes": ["violations"]}).response["violations"]
    return [(each["id"], each["nodes"][0]["html"][:120]) for each in found]


def test_axe_finds_no_violation_in_the_light_and_in_the_dark(tab):
    tab.goto("/")
    settled(tab)
    assert violations(tab) == []
    tab.goto(f"/?like=key:{KEYS[7]}&unlike=id:300&where.parity=odd")
    settled(tab)
    tab.locator(".facet").first.wait_for()
    assert violations(tab) == []
    tab.locator(".card .pick").nth(2).focus()
    tab.keyboard.press("i")
    tab.locator(".bits .logit").first.wait_for()
    assert violations(tab) == []
    tab.goto("/gallery")
    until(tab, NEAR)
    assert violations(tab) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(tab, width):
    tab.set_viewport_size({"width": width, "height": 844})
    for address in ("/", f"/?like=key:{KEYS[7]}&like=id:9992&where.shelf=3", "/gallery"):
        tab.goto(address)
        until(tab, NEAR) if address == "/gallery" else settled(tab)
        until(tab, f"document.documentElement.scrollWidth <= {width}")  # a new width is laid out in the next frame
    tab.goto(f"/?like=key:{KEYS[7]}")
    settled(tab)
    until(  # justified: the row fills the width, that of the next frame if a scroll bar has come
        tab,
        """(() => {
          const cards = [...document.querySelectorAll(".card")].map((card) => card.getBoundingClientRect());
          const row = cards.filter((card) => Math.abs(card.top - cards[0].top) < 1);
          const room = document.getElementById("grid").getBoundingClientRect();
          return Math.abs(row[0].left - room.left) < 1 && Math.abs(row.at(-1).right - room.right) < 1;
        })()""",
    )


def test_the_theme_is_kept(tab):
    tab.emulate_media(color_scheme="light")
    tab.goto("/")
    light = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.get_by_role("button", name="Change between light and dark").click()
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert light != dark
    tab.goto("/gallery")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    tab.evaluate("localStorage.clear()")  # for the other tests


def test_the_gallery_page_leads_to_a_search(tab):
    tab.goto("/gallery")
    until(tab, NEAR)
    assert tab.locator("#balance .bar-of").count() == 64
    member = tab.locator("#duplicates .member").first
    key = member.get_attribute("title")
    member.click()
    tab.wait_for_url("**/?like=id*")
    assert shown(tab) == expected(CODES[KEYS.index(key)])
    tab.goto("/gallery")
    tab.get_by_role("button", name="Browse from a random code").click()
    tab.wait_for_url("**/?like=code*")
    settled(tab)


def test_the_rest_of_a_group_is_shown_where_it_was_left_out(tab):
    tab.goto("/gallery")
    tab.locator("#near-radius").fill("4")
    tab.locator("#near-radius").blur()
    until(tab, "document.querySelectorAll('#duplicates li:first-child .member').length === 24")
    group = tab.locator("#duplicates li").first
    count = int(group.locator(".count").inner_text())
    group.get_by_role("button", name=f"and {count - 24} more").click()
    group.get_by_role("button").wait_for(state="detached")
    shown = group.locator(".member").evaluate_all("(members) => members.map((each) => each.title)")
    assert len(set(shown)) == len(shown) == count
    assert tab.evaluate("document.activeElement.title") == shown[24]


def test_without_the_gallery_s_folder_the_page_searches_and_says_what_is_missing(browser, web_world, web_triton):
    with web_world.page(web_triton.url, gallery=None) as page:
        tab = browser.new_page(base_url=page.url)
        tab.goto(f"/?like=key:{KEYS[7]}")
        assert shown(tab) == expected(CODES[7])
        tab.reload()  # its code was made from its file: it has no id that the address could name
        assert shown(tab) == expected(CODES[7])
        tab.locator(".card .pick").nth(1).focus()
        tab.keyboard.press("+")
        tab.locator(".status.wrong", has_text="start the page with --gallery FOLDER").wait_for()
        tab.goto("/gallery")
        tab.locator("#near-status", has_text="Start the page with --gallery FOLDER").wait_for()
        tab.close()
