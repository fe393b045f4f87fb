// The search page: what is looked at (the address) -> questions to the API -> cards.

import * as api from "./api.js";
import { randomCode } from "./bits.js";
import { byId, h, plural, svg } from "./dom.js";
import { openDetails } from "./details.js";
import { Grid } from "./grid.js";
import { listen } from "./inputs.js";
import { forget, outage, over } from "./outage.js";
import { drawFacets, markFacets } from "./facets.js";
import { drawTray, nameOf } from "./tray.js";
import { addressOf, askedOf, emptyView, idsOf, signed, viewOf, whereWith } from "./view.js";

const uploads = new Map(); // by code, and by name until that is known: what was uploaded, while the page is open
let about = null;
let view = emptyView();
let browsed = null; // the code that the first look at the gallery is ordered by
let answer = null;
let fromCard = false; // the visitor went on from a card by keyboard
let aborter = new AbortController();
let loading = false;
let leftOut = ""; // what was given beside images and is none
let complaint = ""; // why nothing was done: it stays until something is, whatever answers come in between

const by = (...examples) => show({ ...view, examples });
const and = (example) => by(...view.examples, example);
const grid = new Grid(byId("grid"), {
  onSearch: (card) => by(exampleOf(card)),
  onMore: (card) => and(exampleOf(card)),
  onLess: (card) => and({ ...exampleOf(card), unlike: true }),
  onDetails: look,
  onEnd: () => nextPage(),
  onMissed: (error) => failed(error, askAgain),
});
const askAgain = () => grid.askAgain();

const exampleOf = ({ key, id, code, width, height }) => ({ id: String(id), code, ...(key ? { key, width, height } : {}) });

function show(next) {
  keepPlace();
  history.pushState({}, "", addressOf(next));
  begin(next);
}

function begin(next, wanted, y) {
  leftOut = complaint = "";
  view = next;
  byId("details").close();
  const focused = document.activeElement;
  fromCard = grid.list.contains(focused) || (fromCard && focused === document.body);
  drawControls();
  run(wanted, y);
}

// Where the reader is, for the way back and forward; while cards are on their way, the place kept before stays.
function keepPlace() {
  if (answer) history.replaceState({ y: Math.round(scrollY), cards: grid.cards.length, browsed }, "");
}

async function run(wanted = view.k, y = 0) {
  aborter.abort();
  aborter = new AbortController();
  const { signal } = aborter;
  forget();
  answer = null;
  grid.clear(view.examples.length);
  say("Searching…");
  byId("end").textContent = "";
  byId("lead").textContent = heading();
  drawTray(view, tray);
  loading = true;
  try {
    about ??= await api.gallery(signal);
    renew();
    drawAbout();
    answer = await firstPage(wanted, signal);
    remember();
    loading = false; // only here: a next page may be on its way before the rest is drawn
    took(answer);
    over();
    scrollTo(0, y);
    if (fromCard && document.activeElement === document.body) grid.enter(); // whoever is elsewhere by now stays there
    fromCard = false;
    drawTray(view, tray);
    filter(signal);
  } catch (error) {
    failed(error, () => run(wanted, y));
  }
}

// Codes of another model say nothing: what they were found for is asked again.
function renew() {
  if (view.model !== undefined && view.model !== about.fingerprint) {
    for (const example of view.examples) if (example.file || example.key !== undefined || example.id !== undefined) {
      delete example.code;
      delete example.logits;
    }
    if (view.examples.some((example) => example.code)) throw new api.ApiError(400, "This address has a code of another model than the one that is served now. Give the image itself.");
  }
  view.model = about.fingerprint;
}

async function filter(signal) {
  try {
    if (about.facets) await drawFacets(view, pickFacet, signal);
  } catch (error) {
    failed(error, () => filter(signal));
  }
}

async function firstPage(k, signal) {
  const { examples } = view;
  if (!examples.length) return api.search({ ...filters(), like: [{ code: browseCode() }], k }, signal);
  const unknown = examples.filter((example) => example.file && !example.code);
  if (examples.length === 1 && unknown.length && !examples[0].unlike) return ofFile(examples[0], api.searchFile(examples[0], { ...filters(), k, explain: true }, signal));
  for (const example of unknown) {
    const found = await ofFile(example, api.encode(example, signal));
    Object.assign(example, { code: found.code, logits: found.logits });
  }
  const { like, unlike } = signed(view);
  return api.search({ ...filters(), like: like.map(askedOf), unlike: unlike.map(askedOf), k }, signal);
}

// The API knows no names of files.
async function ofFile(example, answered) {
  try {
    return await answered;
  } catch (error) {
    if (error instanceof api.ApiError) error.message = error.message.replace(/^file: /, `${nameOf(example)}: `);
    throw error;
  }
}

function filters() {
  const found = { fingerprint: about.fingerprint };
  if (view.radius !== undefined) found.radius = view.radius;
  if (view.ids) found.ids = view.ids;
  if (Object.keys(view.where).length) found.where = view.where;
  return found;
}

// The codes that were found for the examples: pages after the first are asked for by them, and so is a link.
function remember() {
  if (!view.examples.length) return; // a first look
  for (const [sign, examples] of Object.entries(signed(view))) {
    answer.query[sign].forEach((found, place) => {
      const example = examples[place];
      if (!example.file && found.key !== undefined && !example.box) {
        if (found.id !== undefined) example.id = String(found.id);
        if (example.key === undefined) example.shownKey = found.key; // its picture and its name; its address stays the id
      }
      example.code = found.code;
      example.logits ??= found.logits;
      if (example.file) uploads.set(found.code, { file: example.file, url: example.url, label: example.label, logits: example.logits, box: example.box });
    });
  }
  history.replaceState(history.state, "", addressOf(view));
}

async function nextPage() {
  if (loading || !answer?.next) return;
  loading = true;
  const { signal } = aborter;
  const { like, unlike } = answer.query;
  const codes = (examples) => examples.map(({ code }) => ({ code }));
  try {
    const next = await api.search({ ...filters(), like: codes(like), unlike: codes(unlike), k: view.k, after: answer.next, version: answer.gallery_version }, signal);
    answer = { ...next, times: answer.times };
    loading = false;
    took(answer, false);
    over();
  } catch (error) { // until then, scrolling asks for nothing more
    failed(error, () => { loading = false; nextPage(); });
  }
}

function took(found, first = true) {
  grid.append(found.images, Boolean(found.next), found.total);
  const count = grid.cards.length;
  say(complaint || `${plural(count, "image")}${found.next ? " so far" : ""}${leftOut}`, Boolean(complaint));
  if (first) drawTimes(found);
  byId("end").textContent = found.next ? "" : ending(count, found);
}

function ending(count, found) {
  if (found.truncated) return `The nearest ${count.toLocaleString("en")} images. With --gallery, the page goes on to the last.`;
  if (count) return count > 1 ? `That is all: ${plural(count, "image")}.` : "";
  return view.radius === undefined ? "No image fits these filters." : `No image within ${plural(view.radius, "bit")}.`;
}

function failed(error, again) {
  if (error.name === "AbortError") return;
  if (!(error instanceof api.ApiError)) throw error;
  if (error.isOutage) {
    if (!answer) {
      say("");
      byId("times").replaceChildren();
    }
    outage(error.message, again);
    return;
  }
  if (error.status === 410) {
    say("");
    byId("end").replaceChildren("The gallery has changed since this search began. ", h("button", { type: "button", onclick: () => { about = null; run(); } }, "Search again"));
    return;
  }
  if (!answer) byId("lead").textContent = "";
  complain(error.message);
}

function complain(text) {
  complaint = text;
  say(text, true);
}

function say(text, wrong = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("wrong", wrong);
}

function drawTimes({ times, gallery_version: version }) {
  const steps = [["decode", times.decode_ms], ["encode", times.encode_ms], ["rank", times.rank_ms]].filter(([, took]) => took !== null);
  const whole = steps.reduce((sum, [, took]) => sum + took, 0) || 1;
  let x = 0;
  const bar = svg("svg", { viewBox: "0 0 60 6", "aria-hidden": "true" }, ...steps.map(([name, took]) => {
    const part = svg("rect", { class: name, x, y: 0, width: Math.max(0.5, (60 * took) / whole - 0.7), height: 6, rx: 1 });
    x += (60 * took) / whole;
    return part;
  }));
  byId("times").replaceChildren(bar, ...steps.map(([name, took]) => h("span", { class: `step ${name}` }, `${name} ${took.toFixed(1)} ms`)), h("span", { class: "version", title: "The version of the gallery that answered" }, `gallery ${version}`));
}

function drawAbout() {
  byId("about").textContent = about.count === null ? `${about.bits} bits` : `${plural(about.count, "image")}, ${about.bits} bits`;
  byId("filters").hidden = !about.facets;
}

function drawControls() {
  byId("k").value = view.k;
  byId("radius").value = view.radius ?? "";
  markFacets(view);
  const { examples } = view;
  document.title = examples.length ? `${nameOf(examples[0])} - search by image` : "Search by image";
}

function heading() {
  const { like, unlike } = signed(view);
  const names = (examples) => (examples.length > 2 ? plural(examples.length, "example") : examples.map(nameOf).join(" and "));
  if (!like.length && !unlike.length) return "Or begin with one of these";
  if (!like.length) return `Images least like ${names(unlike)}, farthest first`;
  if (!unlike.length) return `Images like ${names(like)}, ${like.length > 1 ? "smallest sum of distances" : "nearest"} first`;
  return `Images like ${names(like)} and unlike ${names(unlike)}, smallest difference of distances first`;
}

function browseCode() {
  if (browsed?.length !== Math.ceil(about.bits / 8) * 2) browsed = randomCode(about.bits);
  return browsed;
}

const tray = {
  onRemove: (place) => by(...view.examples.toSpliced(place, 1)),
  onTurn: (place) => by(...view.examples.with(place, { ...view.examples[place], unlike: !view.examples[place].unlike })),
  onOpen(place) {
    const example = view.examples[place];
    openDetails({
      subject: example, bits: about?.bits,
      actions: { onRegion: canCut(example) ? (box) => by(partOf(example, box)) : null, onSearch: view.examples.length > 1 ? () => by({ ...example, unlike: false }) : null },
    });
  },
};

function look(card) {
  const chosen = (box) => (box ? partOf(card, box) : exampleOf(card));
  openDetails({
    subject: { ...card }, examples: view.examples, bits: about.bits, distance: grid.distanceOf(card), attributes: card.attributes,
    actions: {
      onSearch: () => by(exampleOf(card)),
      onMore: (box) => and(chosen(box)),
      onLess: (box) => and({ ...chosen(box), unlike: true }),
      onRegion: canCut(card) ? (box) => by(partOf(card, box)) : null,
    },
  });
}

const canCut = ({ file, key, shownKey }) => Boolean(file || key || shownKey);
const partOf = ({ file, url, label, key, shownKey }, box) => (file ? uploaded({ file, url, label, box }) : { key: key || shownKey, box });

function uploaded(example) {
  example.upload = `upload:${uploads.size}`;
  uploads.set(example.upload, example);
  return example;
}

listen((files) => {
  const fit = (file) => file.size && /^(image\/|$)/.test(file.type);
  const wrong = files.filter((file) => !fit(file)).map((file) => `${file.name} is ${file.size ? "no image" : "empty"}`).join(", ");
  const images = files.filter(fit);
  if (!images.length) {
    complain(`Nothing to search by: ${wrong}.`);
    return;
  }
  by(...images.map((file) => uploaded({ file, url: URL.createObjectURL(file), label: file.name || "pasted image" })));
  leftOut = wrong ? `; left out: ${wrong}` : "";
}, complain);

byId("random").addEventListener("click", async () => {
  const { signal } = aborter;
  try {
    about ??= await api.gallery(signal);
    const found = await api.search({ like: [{ code: randomCode(about.bits) }], k: 200 }, signal);
    const picked = found.images[Math.floor(Math.random() * found.images.length)];
    if (picked) by(exampleOf(picked));
  } catch (error) {
    failed(error, () => byId("random").click());
  }
});

byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("controls").addEventListener("change", () => {
  const [k, radius] = [byId("k"), byId("radius")];
  if (!k.checkValidity() || !radius.checkValidity()) return;
  show({ ...view, k: Number(k.value) || 50, radius: radius.value === "" ? undefined : Number(radius.value) });
});
function pickFacet(column, value, chosen) {
  const others = (view.where[column] ?? []).filter((each) => each !== value);
  show({ ...view, where: whereWith(view.where, column, chosen ? [...others, value] : others) });
}
byId("ids").addEventListener("change", () => show({ ...view, ids: byId("ids").value.trim() ? idsOf(byId("ids").value) : undefined }));
byId("clear").addEventListener("click", () => show({ ...view, where: emptyView().where, ids: undefined }));
byId("filters").addEventListener("click", () => {
  const open = byId("facets").hidden;
  byId("facets").hidden = !open;
  byId("filters").setAttribute("aria-expanded", open);
});
byId("copy").hidden = !navigator.clipboard;
byId("copy").addEventListener("click", async () => {
  if (view.examples.some((example) => example.upload && !example.code)) {
    complain("There is no link to an image that has no code yet.");
    return;
  }
  try {
    await navigator.clipboard.writeText(location.href);
  } catch {
    complain("The browser does not let this page copy. The address above is the link.");
    return;
  }
  byId("copy-label").textContent = "Copied";
  byId("copy").classList.add("copied");
  setTimeout(() => {
    byId("copy-label").textContent = "Copy link";
    byId("copy").classList.remove("copied");
  }, 1500);
});

history.scrollRestoration = "manual";
addEventListener("popstate", ({ state }) => {
  if ((location.search || location.pathname) !== addressOf(view)) arrive(state); // a mere #main changes nothing
});
let resting;
addEventListener("scroll", () => {
  clearTimeout(resting);
  resting = setTimeout(keepPlace, 200);
}, { passive: true });
addEventListener("pagehide", keepPlace);

function arrive(state) {
  const next = viewOf(location.search);
  for (const example of next.examples) Object.assign(example, uploads.get(example.code ?? example.upload));
  next.examples = next.examples.filter((example) => !example.upload || example.file);
  history.replaceState(history.state, "", addressOf(next) + location.hash);
  browsed = state?.browsed ?? browsed;
  begin(next, Math.min(1000, Math.max(next.k, state?.cards ?? 0)), state?.y);
}

arrive(history.state);
