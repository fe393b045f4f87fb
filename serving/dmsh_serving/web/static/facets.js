// Filters: one list of values with counts for each column of the metadata.

import { byId, h } from "./dom.js";
import { facets } from "./api.js";

export async function drawFacets(view, onWhere, signal) {
  const chosen = Object.values(view.where).flat().length + (view.ids ? 1 : 0);
  byId("filters-label").textContent = chosen ? `Filters (${chosen})` : "Filters";
  byId("clear").hidden = !chosen;
  if (chosen) {
    byId("facets").hidden = false;
    byId("filters").setAttribute("aria-expanded", true);
  }
  if (document.activeElement !== byId("ids")) byId("ids").value = (view.ids ?? []).join(", ");
  const { columns } = await facets(view.where, signal);
  const place = byId("columns");
  // Who chose by keyboard, or far down a list, goes on from there.
  const scrolled = [...place.children].map((each) => each.scrollTop);
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.value : null;
  place.replaceChildren(...columns.map(fieldset));
  scrolled.forEach((top, column) => { place.children[column].scrollTop = top; });
  [...place.querySelectorAll("input")].find((each) => each.dataset.value === focused)?.focus({ preventScroll: true });

  function fieldset({ name, values, others }) {
    const picked = new Set(Object.hasOwn(view.where, name) ? view.where[name] : []);
    const box = ({ value, count }) => {
      const input = h("input", { type: "checkbox", checked: picked.has(value), "data-value": `${name}=${value}` });
      input.addEventListener("change", () => {
        if (input.checked) picked.add(value);
        else picked.delete(value);
        onWhere(name, [...picked]);
      });
      return h("label", { class: "facet" }, input, h("bdi", {}, value || "(empty)"), h("span", { class: "count" }, count.toLocaleString("en")));
    };
    return h("fieldset", {}, h("legend", {}, name), ...values.map(box), others ? h("p", { class: "hint" }, `and ${others} more values`) : "");
  }
}
