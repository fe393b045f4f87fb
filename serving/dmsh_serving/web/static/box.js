// A region of an image: dragged with a pointer, or moved with the arrow keys (Shift changes its size).

import { h } from "./dom.js";

const STEP = 0.02;

// The image is alone in a frame of its size. onChange is given [left, top, width, height] as shares of the image, or null.
export function boxOn(stage, image, onChange) {
  let box = null;
  let from = null;
  const mark = h("div", { class: "box", hidden: true });
  image.after(mark);
  stage.tabIndex = 0;
  stage.setAttribute("role", "group");
  stage.setAttribute("aria-label", "Region: press B to begin, arrow keys move it, Shift and arrow keys change its size");

  const set = (next) => {
    box = next && next.map((side) => +side.toFixed(4)); // as short as an address should say it
    mark.hidden = !box;
    if (box) ["left", "top", "width", "height"].forEach((side, place) => { mark.style[side] = `${100 * box[place]}%`; });
    onChange(box);
  };
  const at = (event) => {
    const { left, top, width, height } = image.getBoundingClientRect();
    return [(event.clientX - left) / width, (event.clientY - top) / height].map((share) => Math.min(1, Math.max(0, share)));
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.button || !image.naturalWidth) return; // nobody sees yet what would be in it
    from = at(event);
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    if (!from) return;
    const to = at(event);
    const [left, top] = [Math.min(from[0], to[0]), Math.min(from[1], to[1])];
    const [width, height] = [Math.abs(from[0] - to[0]), Math.abs(from[1] - to[1])];
    set(width > 0.02 && height > 0.02 ? [left, top, width, height] : null);
  });
  stage.addEventListener("lostpointercapture", () => { from = null; }); // at its end, however that comes
  stage.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
    if (event.key.toLowerCase() === "b") set([0.25, 0.25, 0.5, 0.5]);
    else if (moves[event.key] && box) {
      const [x, y] = moves[event.key];
      const next = event.shiftKey ? [box[0], box[1], box[2] + x, box[3] + y] : [box[0] + x, box[1] + y, box[2], box[3]];
      const size = [next[2], next[3]].map((side) => Math.min(1, Math.max(0.04, side)));
      set([Math.min(1 - size[0], Math.max(0, next[0])), Math.min(1 - size[1], Math.max(0, next[1])), ...size]);
    } else return;
    event.preventDefault();
  });
}
