// What the heat map shows, as a table: for screen readers, and for whoever likes figures.

import { element } from "./dom.js";
import { count } from "./numbers.js";

/** A row for each layer, in a table's body. */
export function showTable(body, heat) {
  const { frame } = heat;
  if (!frame) return;
  const rows = frame.tiers.map((letters, layer) => {
    const inTier = (letter) => count(letters.split(letter).length - 1);
    const uses = count(heat.uses.subarray(...heat.cellsOf(layer)).reduce((sum, each) => sum + each, 0));
    const chosen = frame.chosen[layer].join(", ") || "none";
    const device = frame.memory.vram_budget === null ? [] : [inTier("d")];
    const cells = [...device, inTier("r"), inTier("."), uses, chosen, busiest(heat, layer)];
    const name = element("th", { scope: "row" }, String(layer));
    return element("tr", {}, name, ...cells.map((text) => element("td", {}, text)));
  });
  body.replaceChildren(...rows);
}

function busiest(heat, layer) {
  const [first, end] = heat.cellsOf(layer);
  let most = first;
  for (let cell = first; cell < end; cell += 1) if (heat.uses[cell] > heat.uses[most]) most = cell;
  return heat.uses[most] ? `${most - first} (${count(heat.uses[most])})` : "none";
}
