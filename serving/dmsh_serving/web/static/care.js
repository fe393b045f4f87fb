// The page an engineer looks at before a model is trusted.

import * as api from "./api.js";
import { glyph, randomCode } from "./bits.js";
import { byId, h, plural } from "./dom.js";
import { outage, over } from "./outage.js";
import { bars, labelEvery, square } from "./plots.js";

const percent = (share) => `${(100 * share).toFixed(1)}%`;
let aborter = new AbortController();
let about = null;

async function known() {
  about ??= await api.gallery();
  over();
  return about;
}

async function start() {
  try {
    await known();
    byId("about").textContent = about.count === null ? `${about.bits} bits` : `${plural(about.count, "image")}, ${about.bits} bits`;
    byId("near-radius").max = about.bits;
    if (!about.codes) {
      byId("near-status").textContent = "Start the page with --gallery FOLDER to see this.";
      return;
    }
    drawBits(await api.examined("bits"));
    await Promise.all([drawShared(), drawDuplicates()]);
  } catch (error) {
    failed(error, start);
  }
}

async function browse() {
  try {
    location.href = `/?like=code:${randomCode((await known()).bits)}`;
  } catch (error) {
    failed(error, browse);
  }
}

function failed(error, again) {
  if (error.name === "AbortError") return;
  if (!(error instanceof api.ApiError)) throw error;
  byId("near-status").textContent = error.isOutage ? "" : error.message;
  if (error.isOutage) outage(error.message, again);
}

function drawBits(found) {
  const { bits, ones, distances } = found;
  const pairs = distances.reduce((sum, count) => sum + count, 0) || 1;
  const mean = distances.reduce((sum, count, distance) => sum + count * distance, 0) / pairs;
  const dull = ones.filter((share) => share < 0.05 || share > 0.95).length;
  const figure = (term, value, note) => h("div", {}, h("dt", {}, term), h("dd", {}, value, note ? h("small", {}, ` ${note}`) : ""));
  byId("figures").replaceChildren(
    figure("Images", found.count.toLocaleString("en")),
    figure("Different codes", found.distinct.toLocaleString("en"), percent(found.distinct / Math.max(1, found.count))),
    figure("Bits", bits.toLocaleString("en"), dull ? `${dull} nearly constant` : ""),
    figure("Mean distance", mean.toFixed(1), `${percent(mean / bits)} of the bits`));
  const unbalanced = (share) => (share < 0.05 || share > 0.95 ? "dull" : "");
  byId("balance").replaceChildren(bars(ones, {
    most: 1, marks: [[0, "0%"], [0.5, "50%"], [1, "100%"]], every: labelEvery(bits), kind: unbalanced,
    title: `Balance of ${bits} bits: from ${percent(Math.min(...ones))} to ${percent(Math.max(...ones))} ones`,
    said: (share, bit) => `bit ${bit}: 1 in ${percent(share)}`,
  }));
  const most = Math.max(...distances);
  byId("distances").replaceChildren(bars(distances.map((count) => count / pairs), {
    most: most / pairs, marks: [[0, "0%"], [most / pairs, percent(most / pairs)]], every: labelEvery(bits + 1),
    title: `Distances of random pairs: ${mean.toFixed(1)} bits on average`,
    said: (share, distance) => `${distance} bits: ${percent(share)} of pairs`,
  }));
  const [strongest] = found.strongest;
  byId("correlation").replaceChildren(square(found.correlation, strongest ? `Correlations; the strongest is ${strongest.correlation}, of bits ${strongest.bits.join(" and ")}` : "Correlations"));
  byId("strongest").replaceChildren(
    h("caption", {}, "Strongest pairs"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Bits"), h("th", { scope: "col" }, "Correlation"))),
    h("tbody", {}, ...found.strongest.map((pair) => h("tr", {}, h("td", {}, pair.bits.join(" and ")), h("td", {}, pair.correlation.toFixed(3))))));
}

async function drawDuplicates() {
  const radius = byId("near-radius");
  if (!radius.checkValidity() || radius.value === "") return;
  aborter.abort();
  aborter = new AbortController();
  byId("near-status").textContent = "Comparing every pair…";
  try {
    const found = await api.examined(`duplicates?radius=${radius.value}`, aborter.signal);
    over();
    byId("near-status").textContent = found.groups ? `${plural(found.images, "image")} in ${plural(found.groups, "group")}` : "None";
    byId("duplicates").replaceChildren(...found.largest.map((each) => group(each, found.gallery_version)));
  } catch (error) {
    failed(error, drawDuplicates);
  }
}

async function drawShared() {
  const found = await api.examined("shared");
  byId("shared-status").textContent = found.groups ? `${plural(found.groups, "code")} shared by ${plural(found.images, "image")}; the most shared first.` : "No two images have the same code.";
  byId("shared").replaceChildren(...found.largest.map((each) => group(each, found.gallery_version)));
}

const more = (count) => `and ${count.toLocaleString("en")} more`;

function group({ count, ids, images }, version) {
  const rest = h("button", { type: "button", class: "rest", hidden: count === images.length, onclick: () => showRest(rest, count, ids, images, version) }, more(count - images.length));
  return h("li", {}, h("span", { class: "count" }, count.toLocaleString("en")), ...images.map(member), rest);
}

// In the place of the button: the images that ids names in this version beyond those that are shown, nearest to the first.
async function showRest(button, count, ids, [{ code }, ...others], version) {
  const rest = ids.slice(others.length + 1);
  button.disabled = true;
  try {
    const found = await api.search({ like: [{ code }], ids: rest, k: rest.length, version });
    over();
    const members = found.images.map(member);
    button.replaceWith(...members, count > ids.length ? h("span", { class: "hint" }, more(count - ids.length)) : "");
    members[0]?.focus();
  } catch (error) {
    button.disabled = false;
    failed(error, () => button.click());
  }
}

function member({ id, key, code, width, height }) {
  const source = width ? api.thumbnailUrl(key) : null;
  const name = key || `id ${id}`;
  const image = source ? h("img", { src: source, alt: "", loading: "lazy", decoding: "async", class: height <= 40 ? "pixels" : null }) : glyph(code);
  const like = new URLSearchParams({ like: key ? `id:${id}:${key}` : `id:${id}` });
  return h("a", { class: "member", href: `/?${like}`, title: name, "aria-label": `Search by ${name}` }, image);
}

byId("browse").addEventListener("click", browse);
byId("near").addEventListener("submit", (event) => event.preventDefault());
byId("near-radius").addEventListener("change", drawDuplicates);
start();
