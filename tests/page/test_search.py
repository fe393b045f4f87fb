"""A visitor searches: every way in, and what is found."""

import base64

from web_world import CODES, IMAGES, KEYS, in_order, png

DROP = """([data, name]) => {
  const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
  const moved = new DataTransfer();
  moved.items.add(new File([bytes], name, { type: "image/png" }));
  dispatchEvent(new DragEvent("drop", { dataTransfer: moved, bubbles: true, cancelable: true }));
}"""


def drop(tab, image, name="dropped.png"):
    tab.evaluate(DROP, [base64.b64encode(png(image)).decode(), name])


def cards(tab):
    tab.locator(".example").first.wait_for()
    tab.locator(".card").first.wait_for()
    return [(int(each.split()[0]), each.split()[1]) for each in tab.locator(".card .caption").all_inner_texts()]


def expected(code, count):
    return [(score, KEYS[number]) for score, number in in_order([code])[:count]]


def test_a_dropped_image_shows_its_neighbours_and_a_click_searches_on(tab):
    tab.goto("/")
    drop(tab, IMAGES[7])
    shown = cards(tab)
    assert shown[:10] == expected(CODES[7], 10)
    tab.locator(".card .pick").nth(3).click()
    tab.wait_for_url("**/?like=key*")
    number = KEYS.index(shown[3][1])
    tab.locator(".card", has_text=shown[3][1]).first.wait_for()
    assert cards(tab)[:10] == expected(CODES[number], 10)
