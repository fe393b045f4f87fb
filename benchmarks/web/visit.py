"""One visit in a real browser: how long cards take to be seen, and how much memory a long scroll needs."""

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

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
# Scrolls to the end by itself; each thumbnail is loaded while it is in the window.
_SCROLL: Final = """() => {
  window.seen = new Set();
  window.atEnd = false;
  const loaded = () => [...document.querySelectorAll(".card img")].filter((image) => {
    const { top, bottom } = image.getBoundingClientRect();
    return bottom > 0 && top < innerHeight;
  }).every((image) => image.complete && image.naturalWidth);
  const step = () => {
    if (loaded()) {
      for (const card of document.querySelectorAll(".card")) window.seen.add(Number(card.dataset.index));
      const bottom = scrollY + innerHeight >= document.documentElement.scrollHeight - 2;
      window.atEnd = bottom && document.getElementById("end").textContent !== "";
      scrollBy(0, innerHeight * 0.8);
    }
    if (!window.atEnd) setTimeout(step, 5);
  };
  step();
}"""


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
            took = _wait(page, "() => window.shownAfter", 60, every=0.1)
            if number:
                found.append(float(str(took)) / 1000)
            context.close()
    return found


@dataclass(frozen=True)
class Scroll:
    """A scroll through a whole gallery.

    Attributes:
        cards: how many different ones were seen.
        before_mb, most_mb: memory of all the browser's processes in MiB, before and at most: proportional set size, in
            which memory that processes share counts once.
        page_mb: the most that the page's own process took of it.
    """

    cards: int
    before_mb: float
    most_mb: float
    page_mb: float


def scrolled(url: str, key: str, seconds: float = 400) -> Scroll:
    """Scroll through every thumbnail of the gallery.

    Nothing is attached to the browser meanwhile: a debugger would make it keep every answer.
    """
    # The browser may still write to its profile while it is removed.
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with folder as profile, _alone(profile) as address, sync_playwright() as playwright:

        def asked(expression: str) -> Any:
            browser = playwright.chromium.connect_over_cdp(address)
            try:
                return browser.contexts[0].pages[0].evaluate(expression)
            finally:
                browser.close()  # detaches

        browser = playwright.chromium.connect_over_cdp(address)
        page = browser.contexts[0].pages[0]
        page.set_viewport_size({"width": 1280, "height": 800})
        page.goto(f"{url}?like=key:{key}&k=500")
        _wait(page, "() => document.querySelectorAll('.card img').length > 20", 60)
        time.sleep(1)
        before, page_most = _megabytes(), _megabytes("--type=renderer")
        most = before
        page.evaluate(_SCROLL)
        browser.close()
        end = time.monotonic() + seconds
        rounds = 0
        while time.monotonic() < end:
            most, page_most = max(most, _megabytes()), max(page_most, _megabytes("--type=renderer"))
            time.sleep(0.5)
            rounds += 1
            if rounds % 10 == 0 and asked("() => window.atEnd"):
                break
        return Scroll(int(asked("() => window.seen.size")), before, most, page_most)


@contextlib.contextmanager
def _alone(profile: str) -> Iterator[str]:
    """Run chromium without Playwright's supervision; give the address at which it may be asked."""
    _check()
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--no-first-run", "--remote-debugging-port=0"]
    with subprocess.Popen(
        [*command, f"--user-data-dir={profile}", "--window-size=1280,800", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        try:
            file, end = Path(profile) / "DevToolsActivePort", time.monotonic() + 30
            while not file.exists() or not file.read_text().strip():
                if time.monotonic() > end:
                    raise MissingError(f"{CHROMIUM} did not start")
                time.sleep(0.05)
            yield f"http://127.0.0.1:{file.read_text().split()[0]}"
        finally:
            running.terminate()


@contextlib.contextmanager
def _browser() -> Iterator[Browser]:
    _check()
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield running
        finally:
            running.close()


def _check() -> None:
    if not CHROMIUM.exists():
        raise MissingError(f"{CHROMIUM} is missing: make browser, or apt-get install chromium")


def _wait(page: Page, expression: str, seconds: float, every: float = 0.005) -> object:
    """Ask again and again; ``every`` so many seconds, because asking takes the browser's time too."""
    end = time.monotonic() + seconds
    while True:
        found = page.evaluate(expression)
        if found:
            return found
        if time.monotonic() > end:
            raise MissingError(f"the page was not ready after {seconds:g} s")
        time.sleep(every)


def _megabytes(kind: str = "") -> float:
    """Return the proportional set size of this process's chromium processes, in MiB; ``kind`` chooses some of them."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            if "chrom" in process.name() and (not kind or kind in process.cmdline()):
                total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 2**20
