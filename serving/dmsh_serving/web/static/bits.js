// Codes to look at: a glyph, two rows of bits with the differing ones marked, logits as bars.

import { h, svg } from "./dom.js";

export function bitsOf(hex, count = hex.length * 4) {
  return [...hex].flatMap((digit) => [8, 4, 2, 1].map((weight) => (parseInt(digit, 16) & weight ? 1 : 0))).slice(0, count);
}

// The code as a small square picture, for an image that is not at hand.
export function glyph(hex) {
  const bits = bitsOf(hex);
  const side = Math.ceil(Math.sqrt(bits.length));
  const path = bits.map((bit, place) => (bit ? `M${place % side} ${Math.floor(place / side)}h1v1h-1z` : "")).join("");
  return svg("svg", { class: "glyph", viewBox: `-1 -1 ${side + 2} ${side + 2}`, "aria-hidden": "true" }, svg("path", { d: path }));
}

export function randomCode(count) {
  const bytes = crypto.getRandomValues(new Uint8Array(Math.ceil(count / 8)));
  if (count % 8) bytes[bytes.length - 1] &= 256 - 2 ** (8 - (count % 8)); // bits beyond the last are 0
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// The places at which two codes differ.
export function differing(one, other, count) {
  const bits = bitsOf(other, count);
  return bitsOf(one, count).flatMap((bit, place) => (bit === bits[place] ? [] : [place]));
}

const [CELL, HIGH, BAR] = [10, 14, 34];

// Returns a figure: per 64 bits, or 32 on a narrow window, the query's logits (if known), its bits, the result's bits, its logits (if known).
export function comparison(query, result, count) {
  const [first, second] = [query.code, result.code].map((hex) => (hex ? bitsOf(hex, count) : null));
  const places = first && second ? differing(query.code, result.code, count) : [];
  const long = innerWidth < 700 ? 32 : 64;
  const lines = [];
  for (let start = 0; start < count; start += long) lines.push(line(start, Math.min(count, start + long), long, first, second, query.logits, result.logits));
  const said = second ? `${places.length} of ${count} bits differ${places.length ? `: ${places.join(", ")}` : ""}` : `${count} bits`;
  return h("figure", { class: "bits" }, ...lines, h("figcaption", {}, said));
}

function line(start, end, long, first, second, above, below) {
  const parts = [];
  let y = 0;
  const put = (shape) => parts.push(shape);
  const bars = (logits, down) => {
    const largest = Math.max(1e-9, ...logits.map(Math.abs));
    put(svg("path", { class: "axis", d: `M0 ${y + BAR / 2}H${(end - start) * CELL}` }));
    for (let place = start; place < end; place += 1) {
      const tall = (Math.abs(logits[place]) / largest) * (BAR / 2 - 1);
      put(svg("rect", { class: "logit", x: (place - start) * CELL + 2, y: logits[place] > 0 ? y + BAR / 2 - tall : y + BAR / 2, width: CELL - 4, height: Math.max(0.5, tall) },
        svg("title", {}, `bit ${place}: logit ${logits[place].toFixed(3)}`)));
    }
    y += BAR + (down ? 0 : 4);
  };
  const row = (bits) => {
    for (let place = start; place < end; place += 1) {
      const differs = first && second && first[place] !== second[place];
      put(svg("rect", { class: `bit${bits[place] ? " one" : ""}${differs ? " differs" : ""}`, x: (place - start) * CELL + 1, y: y + 1, width: CELL - 2, height: HIGH - 2, rx: 1.5 }));
    }
    y += HIGH;
  };
  if (above) bars(above, false);
  if (first) row(first);
  if (first && second) {
    for (let place = start; place < end; place += 1) {
      if (first[place] !== second[place]) put(svg("path", { class: "tick", d: `M${(place - start) * CELL + CELL / 2} ${y + 0.5}v5` }));
    }
    y += 6;
  }
  if (second) row(second);
  if (below) { y += 4; bars(below, true); }
  return svg("svg", { viewBox: `0 0 ${long * CELL} ${y}`, "aria-hidden": "true" }, ...parts);
}
