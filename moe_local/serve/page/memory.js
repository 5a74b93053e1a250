// Memory against its budgets, and how many experts are in each tier, as bars.

import { element } from "./dom.js";
import { count, percent, size } from "./numbers.js";

export function showMemory(parent, { memory, tiers }) {
  const letters = tiers.join("");
  const experts = (letter) => letters.split(letter).length - 1;
  const bars = [["RAM", memory.ram, memory.ram_budget, size]];
  if (memory.vram_budget !== null) bars.push(["VRAM", memory.vram, memory.vram_budget, size]);
  const onDevice = experts("d");
  if (onDevice) bars.push(["Experts on the device", onDevice, letters.length, count]);
  bars.push(["Experts in RAM", experts("r"), letters.length, count]);
  if (parent.childElementCount !== bars.length) parent.replaceChildren(...bars.map(([name]) => bar(name)));
  bars.forEach(([, used, most, show], place) => fill(parent.children[place], used, most, show));
}

function bar(name) {
  const label = element("span", { class: "bar-name" }, name);
  const track = element("div", { class: "track", role: "meter", "aria-label": name, "aria-valuemin": 0 });
  track.append(element("div", { class: "fill" }));
  return element("div", { class: "bar" }, label, element("span", { class: "bar-value" }), track);
}

function fill(made, used, most, show) {
  const share = most ? used / most : 0;
  const said = `${show(used)} of ${show(most)} (${percent(share)})`;
  made.querySelector(".bar-value").textContent = said;
  made.querySelector(".fill").style.width = `${Math.min(100, 100 * share)}%`;
  const track = made.querySelector(".track");
  const values = { max: most, now: Math.min(used, most), text: said };
  for (const [name, value] of Object.entries(values)) track.setAttribute(`aria-value${name}`, value);
}
