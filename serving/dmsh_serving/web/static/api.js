// The HTTP API, which the page uses like everyone else.

export class ApiError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }

  get isOutage() { // it may pass by itself
    return this.status === 0 || this.status === 502 || this.status === 503 || this.status === 504;
  }
}

async function answered(path, options = {}, form = "json") {
  try {
    const response = await fetch(path, { credentials: "omit", ...options });
    const body = await response[response.ok ? form : "json"]();
    options.signal?.throwIfAborted(); // an answer that nobody waits for any more
    if (!response.ok) throw new ApiError(response.status, body.detail);
    return body;
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError(0, "this page's server does not answer");
  }
}

export const gallery = (signal) => answered("/v1/gallery", { signal });

export function facets(where, signal) {
  const query = new URLSearchParams();
  for (const [column, values] of Object.entries(where)) for (const value of values) query.append(column, value);
  return answered(`/v1/facets?${query}`, { signal });
}

export const examined = (what, signal) => answered(`/v1/gallery/${what}`, { signal });

export const search = (question, signal) => post("/v1/search", question, signal);

export const encode = (example, signal) =>
  example.file ? postForm("/v1/encode", example, {}, signal) : post("/v1/encode", { key: example.key }, signal);

export const searchFile = (example, question, signal) => postForm("/v1/search", example, question, signal);

function post(path, body, signal, form) {
  return answered(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal }, form);
}

function postForm(path, example, question, signal) {
  const form = new FormData();
  form.append("file", example.file);
  if (example.box) form.append("box", example.box.join(","));
  if (question.k) form.append("k", question.k);
  if (question.radius !== undefined) form.append("radius", question.radius);
  if (question.fingerprint) form.append("fingerprint", question.fingerprint);
  if (question.explain) form.append("explain", "true");
  if (question.ids) form.append("ids", question.ids.join(","));
  if (question.where) form.append("where", JSON.stringify(question.where)); // a form would change its line breaks
  return answered(path, { method: "POST", body: form, signal });
}

// The addresses of several keys' pictures, in their order; null for a key that has none. One request brings as many as
// fit into an answer. Each address holds the picture itself: a browser sends every other one to another of its
// processes, which takes longer than the picture.
export async function thumbnails(keys, signal) {
  const found = [];
  while (found.length < keys.length) {
    const body = await post("/v1/thumbnails", { keys: keys.slice(found.length) }, signal, "arrayBuffer");
    const lengths = new DataView(body);
    let at = 0;
    do {
      const [start, length] = [at + 4, lengths.getUint32(at)];
      at = start + length;
      found.push(length ? `data:image/webp;base64,${new Uint8Array(body, start, length).toBase64()}` : null);
    } while (at < body.byteLength);
  }
  return found;
}

// A slash of a key is no slash of the address, so a key such as ../x stays one name.
const shown = (key) => key && key !== "." && key !== "..";
export const thumbnailUrl = (key) => (shown(key) ? `/v1/thumbnails/${encodeURIComponent(key)}` : null);
export const imageUrl = (key) => (shown(key) ? `/v1/images/${encodeURIComponent(key)}` : null);
