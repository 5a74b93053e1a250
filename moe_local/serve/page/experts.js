// The view of the experts: frames come from the server while it is looked at.

import { Chart } from "./chart.js";
import { element } from "./dom.js";
import { HeatMap } from "./heatmap.js";
import { Heat } from "./heat.js";
import { showMemory } from "./memory.js";
import { count, figures, percent, seconds, size } from "./numbers.js";
import { Rates } from "./rates.js";
import { ask, events } from "./server.js";
import { showTable } from "./table.js";

const at = (id) => document.getElementById(id);
const ofDevice = document.querySelectorAll("[data-of-device]"); // what a CPU alone has not
const AGAIN = 2000; // milliseconds until the next try after a connection was lost
const TABLE = 2000; // from one state of the table to the next
const CALM = 1000; // from one picture to the next for who wants less motion

const CHARTS = [
  { title: "Hit rate", of: (rates) => rates.hitRate, show: percent, most: 1 },
  { title: "Read from disk", of: (rates) => rates.bytesRead, show: (value) => `${size(value)}/s`, unit: 2 ** 20 },
  { title: "Waiting for experts", of: (rates) => rates.stalled, show: percent, most: 1 },
  { title: "Tokens, of prompts too", of: (rates) => rates.tokens, show: (value) => `${figures(value)}/s` },
];

export class Experts {
  #heat = new Heat();
  #rates = new Rates();
  #map = new HeatMap(at("heatmap"), at("readout"), this.#heat);
  #charts = CHARTS.map((chart) => new Chart(at("charts"), chart));
  #connection = null; // what ends it
  #shown = false;
  #paused = false;
  #drawn = 0;
  #tabulated = 0;

  constructor() {
    at("pause").addEventListener("click", () => this.#pause());
    at("table").addEventListener("toggle", () => this.#tabulate());
    document.addEventListener("visibilitychange", () => this.#follow());
    new ResizeObserver(() => this.#map.draw()).observe(at("heatmap-frame"));
  }

  /** Whether the view is looked at. */
  show(shown) {
    this.#shown = shown;
    this.#follow();
  }

  /** The theme has changed. */
  repaint() {
    this.#map.repaint();
  }

  #pause() {
    this.#paused = !this.#paused;
    at("pause").textContent = this.#paused ? "Go on" : "Pause";
    this.#follow();
  }

  /** Connects or disconnects, as it is looked at or not. */
  #follow() {
    const wanted = this.#shown && !this.#paused && !document.hidden;
    if (wanted && !this.#connection) this.#connect();
    else if (!wanted && this.#connection) this.#connection.abort();
  }

  async #connect() {
    const connection = (this.#connection = new AbortController());
    try {
      const response = await ask("api/live", { signal: connection.signal });
      at("live-state").textContent = "";
      for await (const data of events(response)) this.#take(JSON.parse(data));
    } catch (error) {
      if (error.name !== "AbortError") at("live-state").textContent = error.message;
    }
    this.#connection = null;
    setTimeout(() => this.#follow(), connection.signal.aborted ? 0 : AGAIN);
  }

  #take(frame) {
    const now = performance.now();
    this.#heat.take(frame);
    const rates = this.#rates.take(frame);
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (calm && now - this.#drawn < CALM) return;
    this.#drawn = now;
    this.#map.draw();
    for (const chart of this.#charts) chart.draw(this.#rates.history, frame.time);
    showMemory(at("memory"), frame);
    for (const each of ofDevice) each.hidden = frame.memory.vram_budget === null;
    showTotals(frame.counters, rates);
    if (now - this.#tabulated >= TABLE) this.#tabulate();
  }

  #tabulate() {
    this.#tabulated = performance.now();
    if (at("table").open) showTable(at("layers"), this.#heat);
  }
}

function showTotals({ hits, host_hits: hostHits, misses, bytes_read: bytes, stall_seconds: stalled }) {
  const needed = hits + misses;
  const totals = {
    "Experts needed": count(needed),
    "Were there": needed ? `${count(hits)} (${percent(hits / needed)})` : "none",
    ...(hostHits ? { "Brought from RAM": count(hostHits) } : {}),
    "Read from disk": count(misses - hostHits),
    "Bytes read": size(bytes),
    "Waited for them": seconds(stalled),
  };
  const pairs = Object.entries(totals).map(([name, value]) => {
    return element("div", {}, element("dt", {}, name), element("dd", {}, value));
  });
  at("totals").replaceChildren(...pairs);
}
