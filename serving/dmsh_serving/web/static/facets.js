// Filters: one list of values with counts for each column of the metadata.

import { byId, h } from "./dom.js";
import { facets } from "./api.js";

const picked = (view, { column, facet }) => (view.where[column] ?? []).includes(facet);

// Shows what is chosen; the counts come later, by drawFacets.
export function markFacets(view) {
  const chosen = Object.values(view.where).flat().length + (view.ids ? 1 : 0);
  byId("filters-label").textContent = chosen ? `Filters (${chosen})` : "Filters";
  byId("clear").hidden = !chosen;
  if (chosen) {
    byId("facets").hidden = false;
    byId("filters").setAttribute("aria-expanded", true);
  }
  if (document.activeElement !== byId("ids")) byId("ids").value = (view.ids ?? []).join(", ");
  for (const input of byId("columns").querySelectorAll("input")) input.checked = picked(view, input);
}

// onPick is given a column, a value, and whether it is chosen. A value that is shown stays where it is: a visitor may be
// about to press it.
export async function drawFacets(view, onPick, signal) {
  const { columns } = await facets(view.where, signal);
  const place = byId("columns");
  const names = JSON.stringify(columns.map(({ name }) => name));
  if (place.dataset.names !== names) {
    place.dataset.names = names;
    place.replaceChildren(...columns.map(({ name }) => h("fieldset", {}, h("legend", {}, name), h("p", { class: "hint" }))));
  }
  columns.forEach(({ name, values, others }, column) => {
    const fieldset = place.children[column];
    const hint = fieldset.lastChild;
    const gone = new Map([...fieldset.querySelectorAll("label")].map((label) => [label.firstChild.facet, label]));
    for (const { value, count } of values) {
      const label = gone.get(value) ?? box(name, value);
      if (!gone.delete(value)) hint.before(label);
      label.firstChild.checked = picked(view, label.firstChild);
      label.lastChild.textContent = count.toLocaleString("en");
    }
    for (const label of gone.values()) label.remove();
    hint.textContent = `and ${others} more values`;
    hint.hidden = !others;
  });

  function box(column, facet) {
    const input = Object.assign(h("input", { type: "checkbox", "data-value": `${column}=${facet}` }), { column, facet });
    input.addEventListener("change", () => onPick(column, facet, input.checked));
    return h("label", { class: "facet" }, input, h("bdi", {}, facet || "(empty)"), h("span", { class: "count" }));
  }
}
