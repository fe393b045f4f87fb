// Every way in for an image: dropped, pasted, picked, photographed.

import { byId } from "./dom.js";

export function listen(onFiles, onNothing) {
  const dropping = byId("dropping");
  let gone;
  const hide = () => { dropping.hidden = true; };
  // A browser says again and again that something is over the page, but not that it left if cards were drawn under it.
  addEventListener("dragover", (event) => {
    event.preventDefault();
    if (!event.dataTransfer?.types.includes("Files")) return;
    dropping.hidden = false;
    clearTimeout(gone);
    gone = setTimeout(hide, 500);
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    clearTimeout(gone);
    hide();
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
