// A line over the last two minutes.

import { element } from "./dom.js";

const SECONDS = 120;
const WIDE = 240; // units of the picture, which is stretched
const HIGH = 64;
const SVG = "http://www.w3.org/2000/svg";

export class Chart {
  #top = 0; // what the highest place stands for

  /** `of` takes a value from rates, `show` writes it; the axis ends at `most`, or at a round number of `unit`. */
  constructor(parent, { title, of, show, most, unit = 1 }) {
    Object.assign(this, { title, of, show, most, unit });
    this.value = element("span", { class: "value" }, "–");
    this.axis = element("span", { class: "axis" });
    this.area = shape("path", { class: "area" });
    this.line = shape("path", { class: "line", "vector-effect": "non-scaling-stroke" });
    this.picture = shape("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", role: "img" });
    this.picture.append(this.area, this.line);
    const head = element("figcaption", {}, element("span", {}, title), this.value);
    const foot = element("div", { class: "chart-foot" }, element("span", {}, "2 minutes ago"), this.axis);
    parent.append(element("figure", { class: "chart" }, head, this.picture, foot));
  }

  draw(history, now) {
    const points = history.map((rates) => ({ time: rates.time, value: this.of(rates) }));
    const known = points.filter(({ value }) => value !== null).map(({ value }) => value);
    const latest = points.at(-1)?.value ?? null;
    this.#top = this.most ?? this.unit * roundUp(Math.max(0, ...known) / this.unit);
    this.value.textContent = latest === null ? "–" : this.show(latest);
    this.axis.textContent = known.length ? `top: ${this.show(this.#top)}` : "";
    this.picture.setAttribute("aria-label", this.#described(known, latest));
    const runs = this.#runs(points, now);
    this.line.setAttribute("d", runs.map((run) => `M${run.join("L")}`).join(""));
    const below = (run) => `M${run[0][0]},${HIGH}L${run.join("L")}L${run.at(-1)[0]},${HIGH}Z`;
    this.area.setAttribute("d", runs.map(below).join(""));
  }

  #described(known, latest) {
    if (!known.length) return `${this.title}: nothing yet`;
    const [low, high] = [Math.min(...known), Math.max(...known)].map(this.show);
    return `${this.title}: now ${latest === null ? "nothing" : this.show(latest)}, between ${low} and ${high} lately`;
  }

  /** The points [x, y] of each stretch in which the value is known. */
  #runs(points, now) {
    const runs = [];
    let open = false;
    for (const { time, value } of points) {
      if (value !== null && !open) runs.push([]);
      if (value !== null) runs.at(-1).push([this.#across(time, now), this.#down(value)]);
      open = value !== null;
    }
    return runs;
  }

  #across(time, now) {
    return (WIDE * (1 - (now - time) / SECONDS)).toFixed(1);
  }

  #down(value) {
    return (HIGH - 2 - ((HIGH - 4) * value) / (this.#top || 1)).toFixed(1);
  }
}

function shape(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** 1, 2 or 5 times a power of ten. */
function roundUp(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}
