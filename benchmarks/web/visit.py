"""One visit in a real browser: how long cards take to be seen, and how much memory a long scroll needs."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from dmsh_serving.errors import MissingError

CHROMIUM: Final = Path("/usr/bin/chromium")
_WINDOW: Final[ViewportSize] = {"width": 1280, "height": 2400}  # 200 cards of small images fit

# Notes when the answer is read, and when the pictures of so many cards are there.
_WATCH: Final = """(count) => {
  const json = Response.prototype.json;
  let answered = 0;
  window.shownAfter = null;
  Response.prototype.json = async function () {
    const body = await json.call(this);
    if (body.images) answered ||= performance.now();
    return body;
  };
  const look = () => {
    const pictures = [...document.querySelectorAll(".card img")].filter((each) => each.complete && each.naturalWidth);
    if (answered && pictures.length >= count) window.shownAfter = performance.now() - answered;
    else requestAnimationFrame(look);
  };
  look();
}"""
_SCROLL: Final = """() => {
  scrollBy(0, innerHeight * 0.8);
  const bottom = scrollY + innerHeight >= document.documentElement.scrollHeight - 2;
  return bottom && document.getElementById("end").textContent !== "";
}"""
_LOADED: Final = """() => [...document.querySelectorAll(".card img")].filter((image) => {
  const { top, bottom } = image.getBoundingClientRect();
  return bottom > 0 && top < innerHeight;
}).every((image) => image.complete && image.naturalWidth)"""
_SEEN: Final = "() => [...document.querySelectorAll('.card')].map((card) => Number(card.dataset.index))"


def seconds_to_cards(url: str, key: str, count: int, rounds: int) -> list[float]:
    """Return how long after the answer the pictures of ``count`` cards were there, in seconds, for each round.

    The thumbnails are on the server's disk already: the first round is not counted. The browser's cache is empty.
    """
    found = []
    with _browser() as browser:
        for number in range(rounds + 1):
            context = browser.new_context(viewport=_WINDOW)
            page = context.new_page()
            page.add_init_script(f"({_WATCH})({count})")
            page.goto(f"{url}?like=key:{key}&k={count}")
            took = _wait(page, "() => window.shownAfter", 60)
            if number:
                found.append(float(str(took)) / 1000)
            context.close()
    return found


def megabytes_of_scroll(url: str, key: str, most_cards: int) -> tuple[int, float, float]:
    """Scroll through ``most_cards`` thumbnails, each of them loaded while it is in the window.

    Returns:
        How many different cards were seen, and the memory of all the browser's processes in MiB, before and at most:
        proportional set size, in which memory that processes share counts once.
    """
    seen: set[int] = set()
    with _browser() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{url}?like=key:{key}&k=500")
        _wait(page, _LOADED, 60)
        before = most = _megabytes()
        while True:
            seen.update(page.evaluate(_SEEN))
            at_end = page.evaluate(_SCROLL)
            _wait(page, _LOADED, 60)
            if len(seen) % 7 == 0 or at_end:
                most = max(most, _megabytes())
            if at_end or len(seen) >= most_cards:
                return len(seen), before, max(most, _megabytes())


@contextlib.contextmanager
def _browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        raise MissingError(f"{CHROMIUM} is missing: make browser, or apt-get install chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield running
        finally:
            running.close()


def _wait(page: Page, expression: str, seconds: float) -> object:
    end = time.monotonic() + seconds
    while True:
        found = page.evaluate(expression)
        if found:
            return found
        if time.monotonic() > end:
            raise MissingError(f"the page was not ready after {seconds:g} s")
        time.sleep(0.005)


def _megabytes() -> float:
    """Return the proportional set size of this process's chromium processes, in MiB."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            if "chrom" in process.name():
                total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 2**20
