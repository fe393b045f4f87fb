// Small plots, as inline SVG: bars, and a square of correlations. Each says in words what it shows.

import { svg } from "./dom.js";

const [WIDE, HIGH, LEFT, BELOW] = [720, 150, 50, 20];

// values: heights; most: the height of the whole plot; marks: [value, label] lines across; every: a label below each so many.
export function bars(values, { most, marks, every, title, kind = () => "", said }) {
  const step = (WIDE - LEFT) / values.length;
  const y = (value) => HIGH - (value / most) * (HIGH - 8);
  const parts = marks.flatMap(([value, label]) => [
    svg("path", { class: "axis", d: `M${LEFT} ${y(value)}H${WIDE}` }),
    svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, label)]);
  values.forEach((value, place) => {
    const gap = step > 3 ? 1 : 0;
    parts.push(svg("rect", { class: `bar-of ${kind(value, place)}`, x: LEFT + place * step + gap / 2, y: y(value), width: Math.max(0.4, step - gap), height: Math.max(0, HIGH - y(value)) }, svg("title", {}, said(value, place))));
    if (place % every === 0) parts.push(svg("text", { x: LEFT + (place + 0.5) * step, y: HIGH + 15, "text-anchor": "middle" }, String(place)));
  });
  return svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH + BELOW}`, role: "img", "aria-label": title }, ...parts);
}

export function square(matrix, title) {
  const parts = matrix.flatMap((row, i) => row.map((value, j) => {
    const strength = Math.min(1, Math.abs(value)) ** 0.7;
    return strength < 0.03 ? null : svg("rect", { class: value > 0 ? "together" : "opposite", "fill-opacity": strength.toFixed(2), x: j, y: i, width: 1, height: 1 });
  }));
  return svg("svg", { viewBox: `0 0 ${matrix.length} ${matrix.length}`, role: "img", "aria-label": title, "shape-rendering": "crispEdges" }, ...parts);
}

// A round step that gives about ten labels.
export const labelEvery = (count) => [1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 128].find((step) => count / step <= 17) ?? 128;
