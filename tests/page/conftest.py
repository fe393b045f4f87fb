"""A real browser: Debian's chromium, driven by Playwright."""

from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("live")
            if not CHROMIUM.exists():
                item.add_marker(pytest.mark.skip(f"{CHROMIUM} is missing: apt-get install chromium"))


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Without a sandbox because tests may run as root; what is shown is our own page.
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def window(browser, web_page):
    return browser.new_context(viewport={"width": 1280, "height": 800}, base_url=web_page.url)


@pytest.fixture
def tab(window):
    """A fresh page; an error in its scripts, or anything its policy refuses, fails the test."""
    tab = window.new_page()
    wrong = []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", lambda message: wrong.append(message.text) if "Security Policy" in message.text else None)
    tab.set_default_timeout(60_000)
    yield tab
    tab.close()
    assert wrong == []
