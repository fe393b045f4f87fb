"""Something behind the page breaks and comes back."""

import pytest
from breakable import Breakable
from visitor import expected, settled, shown
from web_world import CODES, KEYS


@pytest.fixture
def breakable(web_triton):
    way = Breakable(web_triton.url)
    yield way
    way.cut()


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
