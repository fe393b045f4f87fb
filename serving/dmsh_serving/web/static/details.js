// Why a result was found: both codes bit by bit, and a box to search by a region of the image.

import { h, icon, byId } from "./dom.js";
import { encode, imageUrl } from "./api.js";
import { comparison, differing, glyph } from "./bits.js";
import { boxOn } from "./box.js";
import { nameOf } from "./tray.js";

let aborter = new AbortController();

// The way back from open details leads to what is below them, in browsers that let a page say so.
window.navigation?.addEventListener("navigate", (event) => {
  if (event.navigationType !== "traverse" || !event.cancelable || !byId("details").open) return;
  event.preventDefault();
  byId("details").close();
});

// subject: a card, with the examples that it was found by and its distance, or one of these itself. The actions but the
// first are also given the region that is drawn, if one is.
export function openDetails({ subject, examples = [], bits, distance, attributes, actions }) {
  const dialog = byId("details");
  const name = nameOf(subject);
  const query = examples.length === 1 ? examples[0] : null;
  const source = subject.url ?? (subject.box || subject.width === null ? null : imageUrl(subject.key ?? subject.shownKey));
  const close = () => dialog.close();
  let box = null;
  const button = (symbol, label, run, kind) => h("button", { type: "button", class: kind, onclick: () => { close(); run(box); } }, icon(symbol), h("span", {}, label));
  const image = source ? h("img", { src: source, alt: `The image ${name}`, draggable: "false" }) : null;
  const stage = h("div", { class: "stage" }, image ? h("div", { class: "frame" }, image) : subject.code ? glyph(subject.code) : null);
  const bitsPlace = h("div", {});
  const canBox = image && !subject.box && actions.onRegion;
  const ofRegion = canBox ? button("box", "Search this region", actions.onRegion) : null;
  const more = actions.onMore ? button("plus", "More like this", actions.onMore) : null;
  const less = actions.onLess ? button("minus", "Less like this", actions.onLess) : null;
  dialog.replaceChildren(
    h("form", { method: "dialog", class: "head" },
      h("h2", { id: "details-title" }, h("bdi", {}, name)),
      h("button", { class: "icon", "aria-label": "Close" }, icon("close"))),
    h("div", { class: "split" },
      h("div", {}, stage, canBox ? h("p", { class: "hint" }, "Drag on the image to choose a region, or press B on it and use the arrow keys.") : null),
      h("div", { class: "facts" },
        h("dl", {},
          ...pair("Distance", query ? `${distance}` : null),
          ...pair("Key", subject.key ? h("bdi", {}, subject.key) : null),
          ...pair("Id", subject.id),
          ...pair("Code", subject.code ? h("code", {}, subject.code) : null),
          ...Object.entries(attributes ?? {}).flatMap(([column, value]) => pair(column, h("bdi", {}, value)))),
        examples.length > 1 ? sum(examples, subject.code, distance) : null,
        h("div", { class: "acts" },
          actions.onSearch ? button("image", "Search by this", actions.onSearch, "primary") : null,
          more, less, ofRegion))),
    bitsPlace);
  const draw = (first, second) => {
    const count = bits ?? (first.logits ?? second.logits)?.length; // before the gallery is known
    if (count && (first.code || second.code)) bitsPlace.replaceChildren(...legend(Boolean(query), first.logits || second.logits), comparison(first, second, count));
  };
  const [first, second] = query ? [query, { code: subject.code }] : [subject, {}];
  draw(first, second);
  if (canBox) {
    ofRegion.disabled = true;
    boxOn(stage, image, (drawn) => {
      box = drawn;
      ofRegion.disabled = !box;
      for (const each of [more, less]) if (each) each.lastChild.textContent = each.lastChild.textContent.replace(/this.*/, box ? "this region" : "this");
    });
  }
  if (!dialog.open) dialog.showModal();
  aborter.abort();
  aborter = new AbortController();
  const { signal } = aborter;
  dialog.onclose = () => { if (!dialog.open) aborter.abort(); };
  const wanted = (each) => each && !each.logits && !each.box && (each.file || (each.key && each.width !== null));
  const asked = [[first, first], [query ? subject : null, second]].filter(([each]) => wanted(each));
  Promise.allSettled(asked.map(async ([each, into]) => {
    const found = await encode(each, signal);
    into.logits = found.logits;
    if (!into.code) into.code = found.code;
  })).then(() => { if (!signal.aborted && asked.length) draw(first, second); });
}

// How a distance from several examples comes about.
function sum(examples, code, distance) {
  const row = (name, said) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, said));
  const terms = examples.map((example) => row(h("bdi", {}, `${example.unlike ? "unlike" : "like"} ${nameOf(example)}`), `${example.unlike ? "−" : "+"} ${differing(example.code, code).length}`));
  return h("table", {}, h("caption", {}, "Sum of distances"), h("tbody", {}, ...terms), h("tfoot", {}, row("Sum", `${distance}`)));
}

function pair(term, value) {
  return value === null || value === undefined || value === "" ? [] : [h("dt", {}, term), h("dd", {}, value)];
}

function legend(two, logits) {
  const parts = two ? ["Above: the example. Below: this image. Bits that differ are marked."] : ["The bits of its code."];
  if (logits) parts.push("Bars are logits; a bit is 1 if its logit is above 0.");
  return [h("h3", {}, two ? "Bit by bit" : "Code"), h("p", { class: "hint" }, parts.join(" "))];
}
