// What is looked at, and the address that brings it back: ?like=id:3:a/b.png&unlike=key:c.png&k=50&radius=12&where.class=3
// Several images may have one key, and an id may be another image's one day: an address has both.
// A code is of one model, which the address names too: &model=FINGERPRINT.
// An uploaded image is like=upload:1 until its code is known. Only the page that it was given to knows that one.

export const DEFAULT_K = 50;

// A column may have any name, also __proto__: where has no prototype.
const emptyWhere = () => Object.create(null);

// examples: in the order in which they were given; unlike is true of those to be unlike.
export const emptyView = () => ({ examples: [], k: DEFAULT_K, radius: undefined, ids: undefined, where: emptyWhere(), model: undefined });

export const signed = ({ examples }) => ({ like: examples.filter((each) => !each.unlike), unlike: examples.filter((each) => each.unlike) });

// Where, with other values for one column; without any, the column is free.
export function whereWith(where, column, values) {
  const found = Object.assign(emptyWhere(), where);
  if (values.length) found[column] = values;
  else delete found[column];
  return found;
}

export function viewOf(text) {
  const view = emptyView();
  for (const [name, value] of new URLSearchParams(text)) {
    if (name === "like" || name === "unlike") {
      const example = exampleOf(value);
      if (example) view.examples.push(name === "unlike" ? { ...example, unlike: true } : example);
    } else if (name === "k" && isWhole(value)) view.k = Math.min(1000, Math.max(1, Number(value)));
    else if (name === "radius" && isWhole(value)) view.radius = Number(value);
    else if (name === "ids") view.ids = idsOf(value);
    else if (name === "model") view.model = value;
    else if (name.startsWith("where.")) (view.where[name.slice(6)] ??= []).push(value);
  }
  return view;
}

export function addressOf(view) {
  const query = new URLSearchParams();
  for (const example of view.examples) query.append(example.unlike ? "unlike" : "like", textOf(example));
  if (view.model && view.examples.some((each) => textOf(each) === `code:${each.code}`)) query.append("model", view.model);
  if (view.k !== DEFAULT_K) query.append("k", view.k);
  if (view.radius !== undefined) query.append("radius", view.radius);
  if (view.ids) query.append("ids", view.ids.join(","));
  for (const [column, values] of Object.entries(view.where)) for (const value of values) query.append(`where.${column}`, value);
  const text = query.toString();
  return text ? `?${text}` : location.pathname;
}

// Ids stay texts: they may be larger than JavaScript's exact numbers.
export const idsOf = (text) => text.split(/[\s,;]+/).filter((each) => /^\d{1,19}$/.test(each));

export const isWhole = (text) => /^-?\d{1,9}$/.test(text);

function textOf({ key, id, code, box, upload }) {
  if (box && key !== undefined) return `box:${box.join(",")}:${key}`;
  if (id !== undefined) return key ? `id:${id}:${key}` : `id:${id}`;
  if (key) return `key:${key}`;
  return code ? `code:${code}` : upload;
}

function exampleOf(text) {
  const kind = text.slice(0, text.indexOf(":"));
  const rest = text.slice(kind.length + 1);
  if (kind === "key") return { key: rest };
  const [, id, named] = kind === "id" ? /^(\d+)(?::(.+))?$/s.exec(rest) ?? [] : [];
  if (id) return named === undefined ? { id } : { id, key: named };
  if (kind === "code" && /^([0-9a-f]{2})+$/.test(rest)) return { code: rest };
  if (kind === "upload") return { upload: text };
  if (kind === "box") {
    const [box, key] = [rest.slice(0, rest.indexOf(":")).split(",").map(Number), rest.slice(rest.indexOf(":") + 1)];
    if (box.length === 4 && box.every(Number.isFinite)) return { key, box };
  }
  return null;
}

// What the API is asked for an example: its code once that is known, so that every page has the same order.
export function askedOf({ key, id, code, box }) {
  if (code) return { code };
  if (box) return { key, box };
  return id === undefined ? { key } : key === undefined ? { id } : { id, key };
}
