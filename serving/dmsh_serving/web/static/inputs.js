// Every way in for an image: dropped, pasted, picked, photographed.

import { byId } from "./dom.js";

export function listen(onFiles, onNothing) {
  const dropping = byId("dropping");
  let depth = 0;
  const shown = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragenter", (event) => {
    if (!shown(event)) return;
    event.preventDefault();
    depth += 1;
    dropping.hidden = false;
  });
  addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (!depth) dropping.hidden = true;
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    dropping.hidden = true;
    take(event.dataTransfer.files, "dropped");
  });
  addEventListener("paste", (event) => {
    if (event.target.closest?.("input, textarea") && !event.clipboardData.files.length) return;
    take(event.clipboardData.files, "pasted");
  });
  for (const [button, input] of [["choose", "file"], ["photograph", "camera"]]) {
    byId(button).addEventListener("click", () => byId(input).click());
    byId(input).addEventListener("change", () => {
      take(byId(input).files, "chosen");
      byId(input).value = "";
    });
  }

  function take(files, how) {
    const found = [...files];
    if (found.length) onFiles(found);
    else onNothing(`What was ${how} holds no image. An address is never fetched: give the image itself.`);
  }
}
