// A banner while something behind the page is down, and a look every two seconds whether it is back.

import { byId, h } from "./dom.js";
import { gallery } from "./api.js";

const EVERY = 2000;
const unanswered = new Set(); // what is done again once it is back
let waiting = null;

export function outage(detail, again) {
  unanswered.add(again);
  told(detail);
  waiting ??= setTimeout(look, EVERY);
}

// Nobody waits for what was asked before: another question takes its place.
export function forget() {
  unanswered.clear();
}

// An answer came: it is back.
export function over() {
  clearTimeout(waiting);
  waiting = null;
  byId("banner").hidden = true;
  byId("banner").replaceChildren();
  const all = [...unanswered];
  unanswered.clear();
  for (const again of all) again();
}

function told(detail) {
  byId("banner").hidden = false;
  byId("banner").replaceChildren(h("p", {}, `No answer: ${detail}. Trying again…`));
}

async function look() {
  const mine = waiting;
  try {
    await gallery();
  } catch (error) {
    if (waiting !== mine) return; // another answer was faster
    told(error.message);
    waiting = setTimeout(look, EVERY);
    return;
  }
  over();
}
