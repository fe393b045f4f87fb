// Why a result was found: both codes bit by bit, and a box to search by a region of the image.

import { h, icon, byId } from "./dom.js";
import { encode, imageUrl } from "./api.js";
import { comparison, glyph } from "./bits.js";
import { boxOn } from "./box.js";

let aborter = new AbortController();

// subject: a card or an example; query: the one example it is compared with, or null.
export function openDetails({ subject, query, bits, distance, attributes, actions }) {
  const dialog = byId("details");
  const name = subject.key || subject.shownKey || subject.label || (subject.id === undefined ? `code ${subject.code}` : `id ${subject.id}`);
  const source = subject.url ?? (subject.box || subject.width === null ? null : imageUrl(subject.key ?? subject.shownKey));
  const close = () => dialog.close();
  const act = (run) => () => { close(); run(); };
  const button = (symbol, label, run, kind) => h("button", { type: "button", class: kind, onclick: act(run) }, icon(symbol), h("span", {}, label));
  const image = source ? h("img", { src: source, alt: `The image ${name}`, draggable: "false" }) : null;
  const stage = h("div", { class: "stage" }, image ? h("div", { class: "frame" }, image) : subject.code ? glyph(subject.code) : null);
  const bitsPlace = h("div", {});
  const region = h("button", { type: "button", disabled: true }, icon("box"), h("span", {}, "Search this region"));
  const canBox = image && !subject.box && actions.onRegion;
  dialog.replaceChildren(
    h("form", { method: "dialog", class: "head" },
      h("h2", { id: "details-title" }, h("bdi", {}, name)),
      h("button", { class: "icon", "aria-label": "Close" }, icon("close"))),
    h("div", { class: "split" },
      h("div", {}, stage, canBox ? h("p", { class: "hint" }, "Drag on the image to choose a region, or press B on it and use the arrow keys.") : null),
      h("div", { class: "facts" },
        h("dl", {},
          ...pair(query ? "Distance" : "Sum of distances", distance === undefined ? null : `${distance}`),
          ...pair("Key", subject.key ? h("bdi", {}, subject.key) : null),
          ...pair("Id", subject.id),
          ...pair("Code", subject.code ? h("code", {}, subject.code) : null),
          ...Object.entries(attributes ?? {}).flatMap(([column, value]) => pair(column, h("bdi", {}, value)))),
        h("div", { class: "acts" },
          actions.onSearch ? button("image", "Search by this", actions.onSearch, "primary") : null,
          actions.onMore ? button("plus", "More like this", actions.onMore) : null,
          actions.onLess ? button("minus", "Less like this", actions.onLess) : null,
          canBox ? region : null))),
    bitsPlace);
  const draw = (first, second) => {
    const count = bits ?? (first.logits ?? second.logits)?.length; // before the gallery is known
    if (count && (first.code || second.code)) bitsPlace.replaceChildren(...legend(Boolean(query), first.logits || second.logits), comparison(first, second, count));
  };
  const [first, second] = query ? [query, { code: subject.code }] : [subject, {}];
  draw(first, second);
  if (canBox) {
    const box = boxOn(stage, image, (drawn) => { region.disabled = !drawn; });
    region.addEventListener("click", act(() => actions.onRegion(box())));
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

function pair(term, value) {
  return value === null || value === undefined || value === "" ? [] : [h("dt", {}, term), h("dd", {}, value)];
}

function legend(two, logits) {
  const parts = two ? ["Above: the example. Below: this image. Bits that differ are marked."] : ["The bits of its code."];
  if (logits) parts.push("Bars are logits; a bit is 1 if its logit is above 0.");
  return [h("h3", {}, two ? "Bit by bit" : "Code"), h("p", { class: "hint" }, parts.join(" "))];
}
