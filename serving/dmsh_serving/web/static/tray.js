// The examples that are searched by: each with its sign, to turn, to look at, to remove.

import { h, icon, byId } from "./dom.js";
import { thumbnailUrl } from "./api.js";
import { glyph } from "./bits.js";

export function drawTray(view, { onTurn, onRemove, onOpen }) {
  const chips = ["like", "unlike"].flatMap((sign) => view[sign].map((example) => chip(example, sign)));
  byId("examples").replaceChildren(...chips);
  document.body.classList.toggle("searching", chips.length > 0);

  function chip(example, sign) {
    const name = nameOf(example);
    const like = sign === "like";
    return h("li", { class: `example ${sign}` },
      h("button", { type: "button", class: "face", title: name, "aria-label": `Look at ${name}`, onclick: () => onOpen(example, sign) }, face(example)),
      h("button", { type: "button", class: "sign", "aria-label": `${like ? "More" : "Less"} like ${name}: turn around`, title: like ? "More like this" : "Less like this", onclick: () => onTurn(example, sign) }, icon(like ? "plus" : "minus")),
      h("button", { type: "button", class: "remove", "aria-label": `Remove ${name}`, title: "Remove", onclick: () => onRemove(example, sign) }, icon("close")));
  }
}

export function nameOf({ key, shownKey, id, code, label, box }) {
  const name = key || shownKey || label || (id === undefined ? `code ${code?.slice(0, 8)}` : `id ${id}`);
  return box ? `a region of ${name}` : name;
}

function face(example) {
  const source = example.url ?? thumbnailUrl(example.key ?? example.shownKey);
  if (!source) return example.code ? glyph(example.code) : h("span", { class: "absent" }, "…");
  const image = h("img", { src: source, alt: "", draggable: "false" });
  image.addEventListener("error", () => image.replaceWith(example.code ? glyph(example.code) : h("span", { class: "absent" }, "no image")));
  if (!example.box) return image;
  const frame = h("span", { class: "cut" }, image);
  const [left, top, width, height] = example.box;
  const show = () => { // the region alone, by moving the whole image behind a window
    const scale = Math.min(64 / (width * image.naturalWidth), 64 / (height * image.naturalHeight));
    image.style.width = `${image.naturalWidth * scale}px`;
    image.style.height = `${image.naturalHeight * scale}px`;
    image.style.transform = `translate(${-left * image.naturalWidth * scale}px, ${-top * image.naturalHeight * scale}px)`;
    frame.style.width = `${width * image.naturalWidth * scale}px`;
    frame.style.height = `${height * image.naturalHeight * scale}px`;
  };
  if (image.complete && image.naturalWidth) show();
  else image.addEventListener("load", show);
  return frame;
}
