"""What a visitor of the page does and sees, with Playwright."""

import base64
import time

from web_world import KEYS, in_order

_FILES = """([files, how]) => {
  const moved = new DataTransfer();
  for (const [data, name] of files) {
    const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
    moved.items.add(new File([bytes], name, { type: "image/png" }));
  }
  const event = how === "paste"
    ? new ClipboardEvent("paste", { clipboardData: moved, bubbles: true })
    : new DragEvent("drop", { dataTransfer: moved, bubbles: true, cancelable: true });
  document.body.dispatchEvent(event);
}"""


def give(tab, *files, how="drop"):
    """Drop or paste image files, bytes."""
    packed = [[base64.b64encode(data).decode(), f"given-{number}.png"] for number, data in enumerate(files)]
    tab.evaluate(_FILES, [packed, how])


def until(tab, expression, seconds=60):
    """Wait until ``expression`` holds; Playwright's own way evaluates text later, which the page's policy refuses."""
    end = time.monotonic() + seconds
    while not tab.evaluate(expression):
        assert time.monotonic() < end, f"{expression} does not hold after {seconds} s"
        time.sleep(0.02)


def settled(tab):
    """Wait until an answer is shown."""
    until(tab, "!/^(Searching|$)/.test(document.getElementById('status').textContent)")


def shown(tab, count=10):
    """Return (distance, key) of the first cards."""
    settled(tab)
    return tab.evaluate(
        """(count) => [...document.querySelectorAll(".card")].slice(0, count).map((card) =>
          [Number(card.querySelector(".distance").textContent), card.querySelector(".key").textContent])""",
        count,
    )


def expected(*like, unlike=(), allowed=None, count=10):
    """Return what :func:`shown` gives if the page is right."""
    return [[score, KEYS[number]] for score, number in in_order(like, unlike, allowed)[:count]]
