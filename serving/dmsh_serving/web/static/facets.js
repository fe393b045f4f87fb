// Filters: one list of values with counts for each column of the metadata, and ids.

import { byId, h } from "./dom.js";
import { facets } from "./api.js";
import { idsOf } from "./view.js";

export async function drawFacets(view, onWhere, onIds, signal) {
  const place = byId("facets");
  const { columns } = await facets(view.where, signal);
  const chosen = Object.values(view.where).flat().length + (view.ids ? 1 : 0);
  byId("filters-label").textContent = chosen ? `Filters (${chosen})` : "Filters";
  if (chosen) {
    place.hidden = false;
    byId("filters").setAttribute("aria-expanded", true);
  }
  const ids = h("textarea", { id: "ids", rows: 2, placeholder: "12, 40, 41" }, (view.ids ?? []).join(", "));
  ids.addEventListener("change", () => onIds(ids.value.trim() ? idsOf(ids.value) : undefined));
  place.replaceChildren(
    ...columns.map((column) => fieldset(column)),
    h("div", { class: "ids" }, h("label", { for: "ids" }, "Only these ids"), ids),
    chosen ? h("button", { type: "button", onclick: () => { onWhere({}); } }, "Clear filters") : "");

  function fieldset({ name, values, others }) {
    const picked = new Set(view.where[name] ?? []);
    const box = ({ value, count }) => {
      const input = h("input", { type: "checkbox", checked: picked.has(value) });
      input.addEventListener("change", () => {
        if (input.checked) picked.add(value);
        else picked.delete(value);
        const { [name]: _, ...rest } = view.where;
        onWhere(picked.size ? { ...rest, [name]: [...picked] } : rest);
      });
      return h("label", { class: "facet" }, input, h("bdi", {}, value || "(empty)"), h("span", { class: "count" }, count.toLocaleString("en")));
    };
    return h("fieldset", {}, h("legend", {}, name), ...values.map(box), others ? h("p", { class: "hint" }, `and ${others} more values`) : "");
  }
}
