// A justified grid of any number of cards: rows fill the width, and only cards near the window are in the document.

import { h, icon, once, plural } from "./dom.js";
import { thumbnails } from "./api.js";
import { glyph } from "./bits.js";

const GAP = 10;
const CAPTION = 30;
const AHEAD = 1.2; // windows, above and below, that are drawn before they are seen
const AT_ONCE = 40; // pictures of a request: a browser spends longer on a request than on the picture that it brings

export class Grid {
  constructor(list, on) { // on: onSearch, onMore, onLess, onDetails of a card; onEnd; onMissed of what kept pictures away
    this.list = list;
    this.batches = new Set();
    this.on = on;
    this.clear();
    addEventListener("scroll", () => this.soon(), { passive: true });
    new ResizeObserver(() => { if (this.list.clientWidth !== this.width) this.layOut(0); }).observe(list);
    list.addEventListener("keydown", (event) => this.pressed(event));
    list.addEventListener("click", once((event) => this.clicked(event)));
    list.addEventListener("focusin", (event) => { this.focused(event); this.equip(event.target); });
    list.addEventListener("pointerover", (event) => this.equip(event.target));
  }

  // examples: how many the next cards are compared with; 0 for a first look, at which distances say nothing.
  clear(examples = 0) {
    this.examples = examples;
    for (const { aborter } of this.batches) aborter.abort();
    this.cards = [];
    this.rows = [];
    this.drawn = new Map();
    this.current = 0;
    this.total = -1;
    this.hasMore = false;
    this.lastTop = 0;
    this.list.replaceChildren();
    this.list.style.height = "0px";
  }

  append(cards, hasMore, total) {
    const first = this.cards.length;
    this.cards.push(...cards);
    this.hasMore = hasMore;
    this.total = hasMore ? (total ?? -1) : this.cards.length;
    if (!first) this.chooseHeight();
    const last = this.rows.at(-1);
    this.layOut(last && last.open ? last.first : first);
  }

  // Tiny images are not blown up to a blur.
  chooseHeight() {
    const heights = this.cards.map((card) => card.height ?? 0).filter(Boolean).sort((a, b) => a - b);
    const typical = heights[heights.length >> 1] ?? 320;
    this.target = Math.min(innerWidth < 640 ? 116 : 176, Math.max(96, 1.5 * typical));
  }

  layOut(changed) {
    const first = this.list.clientWidth === this.width ? changed : 0; // rows of another width do not stay
    this.width = this.list.clientWidth;
    if (!this.width || !this.cards.length) return;
    this.chooseHeight();
    this.rows = first ? this.rows.filter((row) => row.end <= first) : [];
    for (const [index, element] of this.drawn) {
      if (index >= first && !element.contains(document.activeElement)) {
        element.remove();
        this.drawn.delete(index);
      }
    }
    let top = this.rows.length ? this.rows.at(-1).top + this.rows.at(-1).height + CAPTION + GAP : 0;
    for (let start = first; start < this.cards.length;) {
      let end = start;
      let aspects = 0;
      while (end < this.cards.length && aspects * this.target + (end - start) * GAP < this.width) aspects += aspect(this.cards[end++]);
      const fills = aspects * this.target + (end - start - 1) * GAP >= this.width;
      const height = fills ? (this.width - (end - start - 1) * GAP) / aspects : this.target;
      this.rows.push({ first: start, end, top, height, open: !fills });
      top += height + CAPTION + GAP;
      start = end;
    }
    this.list.style.height = `${top}px`;
    this.draw();
  }

  soon() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = undefined;
      this.draw();
    });
  }

  draw() {
    const { top } = this.list.getBoundingClientRect();
    // Who scrolls fast does not look: images that would be gone at once are not asked for.
    clearTimeout(this.filling);
    const fast = Math.abs(top - this.lastTop) > innerHeight / 2;
    this.lastTop = top;
    const from = -top - AHEAD * innerHeight;
    const to = -top + (1 + AHEAD) * innerHeight;
    const wanted = new Set();
    for (let index = this.rowAt(from); index < this.rows.length && this.rows[index].top < to; index += 1) {
      const row = this.rows[index];
      let left = 0;
      for (let each = row.first; each < row.end; each += 1) {
        const width = aspect(this.cards[each]) * row.height;
        wanted.add(each);
        this.place(each, left, row, width);
        left += width + GAP;
      }
    }
    for (const [index, element] of this.drawn) {
      if (!wanted.has(index) && !element.contains(document.activeElement)) {
        element.remove();
        this.drawn.delete(index);
      }
    }
    for (const { images, aborter } of this.batches) if (!images.some((image) => image.isConnected)) aborter.abort();
    if (fast) this.filling = setTimeout(() => this.fill(), 90);
    else this.fill();
    // What is near the window comes first: its pictures, then more cards.
    if (this.hasMore && !this.batches.size && -top + (1 + 2 * AHEAD) * innerHeight > this.list.offsetHeight) this.on.onEnd();
  }

  fill() {
    const waiting = [...this.list.querySelectorAll("img[data-key]")];
    for (let start = 0; start < waiting.length; start += AT_ONCE) this.load(waiting.slice(start, start + AT_ONCE));
  }

  async load(images) {
    const keys = images.map((image) => image.dataset.key);
    for (const image of images) image.removeAttribute("data-key"); // asked for
    const batch = { images, aborter: new AbortController() };
    this.batches.add(batch);
    try {
      const found = await thumbnails(keys, batch.aborter.signal);
      found.forEach((address, place) => show(images[place], address));
    } catch (error) {
      images.forEach((image, place) => (error.isOutage ? image.setAttribute("data-missed", keys[place]) : show(image, null)));
      if (error.isOutage) this.on.onMissed(error);
    } finally {
      this.batches.delete(batch);
      if (!this.batches.size) this.soon(); // for more cards
    }
  }

  // Asks for the pictures again that an outage kept away.
  askAgain() {
    for (const image of this.list.querySelectorAll("img[data-missed]")) {
      image.setAttribute("data-key", image.dataset.missed);
      image.removeAttribute("data-missed");
    }
    this.fill();
  }

  rowAt(y) {
    let [low, high] = [0, this.rows.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.rows[middle].top + this.rows[middle].height + CAPTION < y) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  place(index, left, row, width) {
    let element = this.drawn.get(index);
    if (!element) {
      element = this.cardElement(index, row.height);
      let next = index + 1;
      while (next < index + 400 && !this.drawn.has(next)) next += 1;
      this.list.insertBefore(element, this.drawn.get(next) ?? null);
      this.drawn.set(index, element);
    }
    const { style } = element;
    style.transform = `translate(${left}px, ${row.top}px)`;
    style.width = `${width}px`;
    element.firstChild.style.height = `${row.height}px`;
    element.setAttribute("aria-setsize", this.total);
  }

  cardElement(index, shownHeight) {
    const card = this.cards[index];
    const name = card.key || `id ${card.id}`;
    const distance = this.distanceOf(card);
    const far = said(distance, this.examples);
    const pick = h("button", {
      type: "button", class: "pick", tabindex: index === this.current ? 0 : -1,
      "aria-label": `${name}${far && `, ${far}`}: search by it`,
    }, picture(card, shownHeight));
    return h("li", { class: "card", "data-index": index, "aria-posinset": index + 1 },
      pick,
      matchMedia("(hover: none)").matches ? this.tools(name) : null,
      h("div", { class: "caption" }, h("span", { class: `distance${this.examples === 1 && distance === 0 ? " same" : ""}`, title: far, hidden: !far }, String(distance)), named(name)));
  }

  // The API's score: of one example that is not to be like, its distance turned round.
  distanceOf({ distance }) {
    return this.examples === 1 ? Math.abs(distance) : distance;
  }

  // Made when a card is pointed at or focused: most cards never are.
  tools(name) {
    const tool = (act, symbol, label) => h("button", { type: "button", "data-act": act, tabindex: -1, title: label, "aria-label": `${label}: ${name}` }, icon(symbol));
    return h("div", { class: "tools" }, tool("onMore", "plus", "More like this"), tool("onLess", "minus", "Less like this"), tool("onDetails", "info", "Details: why it was found, and search by a part of it"));
  }

  equip(target) {
    const index = this.indexOf(target);
    const element = this.drawn.get(index);
    if (element && !element.querySelector(".tools")) element.children[0].after(this.tools(this.cards[index].key || `id ${this.cards[index].id}`));
  }

  indexOf(target) {
    const element = target.closest(".card");
    return element ? Number(element.dataset.index) : -1;
  }

  clicked(event) {
    const index = this.indexOf(event.target);
    const button = event.target.closest("button");
    if (index < 0 || !button) return;
    this.on[button.dataset.act ?? "onSearch"](this.cards[index]);
  }

  focused(event) {
    const index = this.indexOf(event.target);
    if (index < 0) return;
    this.drawn.get(this.current)?.firstChild.setAttribute("tabindex", -1);
    this.current = index;
    this.drawn.get(index).firstChild.setAttribute("tabindex", 0);
  }

  pressed(event) {
    const index = this.indexOf(event.target);
    if (index < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const acts = { "+": "onMore", "=": "onMore", "-": "onLess", i: "onDetails" };
    if (acts[event.key]) this.on[acts[event.key]](this.cards[index]);
    else {
      const next = this.neighbour(index, event.key);
      if (next === undefined) return;
      this.focus(next);
    }
    event.preventDefault();
  }

  neighbour(index, key) {
    const row = this.rows.findIndex((each) => index < each.end);
    const column = index - this.rows[row].first;
    const inRow = (other) => (this.rows[other] ? Math.min(this.rows[other].first + column, this.rows[other].end - 1) : index);
    return {
      ArrowRight: Math.min(index + 1, this.cards.length - 1), ArrowLeft: Math.max(index - 1, 0),
      ArrowDown: inRow(row + 1), ArrowUp: inRow(row - 1), Home: 0, End: this.cards.length - 1,
    }[key];
  }

  // Who went on from a card by keyboard goes on from the first of the new ones.
  enter() {
    this.drawn.get(0)?.firstChild.focus({ preventScroll: true });
  }

  focus(index) {
    const row = this.rows.find((each) => index < each.end);
    const top = this.list.getBoundingClientRect().top + row.top;
    const bar = document.querySelector(".bar").offsetHeight + 8;
    if (top < bar) scrollBy(0, top - bar);
    else if (top + row.height + CAPTION > innerHeight) scrollBy(0, top + row.height + CAPTION + GAP - innerHeight);
    this.draw();
    this.drawn.get(index)?.firstChild.focus({ preventScroll: true });
  }
}

function said(distance, examples) {
  if (!examples) return "";
  if (examples > 1) return `sum of distances, those to unlike examples taken off: ${distance}`;
  return distance ? `${plural(distance, "bit")} of the code ${distance === 1 ? "differs" : "differ"}` : "the same code";
}

// A long key loses its middle, not its end.
function named(name) {
  const cut = name.lastIndexOf("/") + 1;
  return h("bdi", { class: "key", title: name }, h("span", { class: "folder" }, name.slice(0, cut)), h("span", { class: "file" }, name.slice(cut)));
}

function aspect(card) {
  return card.width && card.height ? Math.min(2.6, Math.max(0.5, card.width / card.height)) : 1;
}

function picture(card, shownHeight) {
  if (!card.width || !card.key) return instead(card.code);
  return h("img", { alt: "", "data-key": card.key, "data-code": card.code, decoding: "async", draggable: "false", class: card.height * 2 <= shownHeight ? "pixels" : null });
}

function show(image, address) {
  if (!image.isConnected) return;
  const fail = () => image.replaceWith(instead(image.dataset.code));
  if (!address) { fail(); return; }
  image.addEventListener("error", fail, { once: true });
  image.src = address;
}

function instead(code) {
  return code ? glyph(code) : h("span", { class: "absent" }, "no image");
}
