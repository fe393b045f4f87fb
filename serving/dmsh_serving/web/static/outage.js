// A banner while something behind the page is down, and a look every two seconds whether it is back.

import { byId, h } from "./dom.js";
import { gallery } from "./api.js";

const EVERY = 2000;
let waiting = null;

export function outage(detail, onBack) {
  const banner = byId("banner");
  banner.hidden = false;
  banner.replaceChildren(h("p", {}, `No answer: ${detail}. Trying again…`));
  waiting ??= setTimeout(look, EVERY);

  async function look() {
    waiting = null;
    try {
      const about = await gallery();
      banner.hidden = true;
      banner.replaceChildren();
      onBack(about);
    } catch (error) {
      outage(error.message, onBack);
    }
  }
}
