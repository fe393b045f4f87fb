// The examples that are searched by: each with its sign, to turn, to look at, to remove.

import { h, icon, byId, once } from "./dom.js";
import { thumbnailUrl } from "./api.js";
import { glyph } from "./bits.js";

let drawn = ""; // what the tray shows: who is about to press a button there keeps it unless something has changed

// The actions take an example's place.
export function drawTray({ examples }, { onTurn, onRemove, onOpen }) {
  const shown = JSON.stringify(examples.map((example) => [example.unlike, nameOf(example), sourceOf(example) ?? example.code, example.box]));
  if (shown === drawn) return;
  drawn = shown;
  const list = byId("examples");
  const buttons = () => [...list.querySelectorAll("button")];
  const focused = buttons().indexOf(document.activeElement);
  list.replaceChildren(...examples.map(chip));
  document.body.classList.toggle("searching", examples.length > 0);
  byId("part").hidden = !examples.some((example) => sourceOf(example) && !example.box);
  if (focused >= 0) (buttons()[focused] ?? buttons().at(-1) ?? byId("choose")).focus();

  function chip(example, place) {
    const name = nameOf(example);
    const like = !example.unlike;
    return h("li", { class: `example ${like ? "like" : "unlike"}` },
      h("button", { type: "button", class: "face", title: name, "aria-label": `Look at ${name}`, onclick: () => onOpen(place) }, face(example)),
      h("button", { type: "button", class: "sign", "aria-label": `${like ? "More" : "Less"} like ${name}: turn around`, title: like ? "More like this" : "Less like this", onclick: () => onTurn(place) }, icon(like ? "plus" : "minus")),
      h("button", { type: "button", class: "remove", "aria-label": `Remove ${name}`, title: "Remove", onclick: once(() => onRemove(place)) }, icon("close")));
  }
}

export function nameOf({ key, shownKey, id, code, label, box }) {
  const name = key || shownKey || label || (id === undefined ? `code ${code?.slice(0, 8)}` : `id ${id}`);
  return box ? `a region of ${name}` : name;
}

const sourceOf = (example) => example.url ?? thumbnailUrl(example.key ?? example.shownKey);

function face(example) {
  const source = sourceOf(example);
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
