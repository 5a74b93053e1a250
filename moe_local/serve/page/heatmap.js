// Layers x experts on a canvas: colour says where an expert is, brightness how much it was used lately, an outline
// that the last token was sent to it. A cell is a pixel of a small picture that is drawn large, so 94 x 512 are fast.

import { count } from "./numbers.js";

const MARGIN = { left: 34, top: 18 }; // pixels for the numbers of layers and experts
const CELL = { least: 2, widest: 44, highest: 22 }; // pixels
const HIGHEST = 620; // pixels of all layers, where cells need not be the least
const GAP_FROM = 6; // cells of that many pixels have a line between them
const SHADES = 32; // from idle to hot
const TIERS = { d: "device", r: "ram", ".": "disk" };
const TIER_NAMES = { d: "on the device", r: "in RAM", ".": "on disk" };
const MOVES = {
  ArrowLeft: [0, -1],
  ArrowRight: [0, 1],
  ArrowUp: [-1, 0],
  ArrowDown: [1, 0],
  PageUp: [-10, 0],
  PageDown: [10, 0],
  Home: [0, -Infinity],
  End: [0, Infinity],
};

export class HeatMap {
  #small = document.createElement("canvas");
  #colours = null;
  #cursor = null; // {layer, expert}

  constructor(canvas, readout, heat) {
    this.canvas = canvas;
    this.readout = readout;
    this.heat = heat;
    canvas.addEventListener("pointermove", (event) => this.#moveTo(this.#cellAt(event), false));
    canvas.addEventListener("pointerleave", () => this.#moveTo(null, false));
    canvas.addEventListener("keydown", (event) => this.#pressed(event));
    canvas.addEventListener("focus", () => this.#moveTo(this.#cursor ?? { layer: 0, expert: 0 }, true));
    canvas.addEventListener("blur", () => this.#moveTo(null, false));
  }

  /** With the colours of another theme. */
  repaint() {
    this.#colours = null;
    this.draw();
  }

  draw() {
    const { frame } = this.heat;
    if (!frame) return;
    this.#colours ??= coloursOf(this.canvas);
    const { width, height } = this.#layOut(frame);
    this.#paintSmall(frame);
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.imageSmoothingEnabled = false;
    context.drawImage(this.#small, MARGIN.left, MARGIN.top, width, height);
    this.#separate(context, width, height);
    this.#number(context, frame);
    this.#outlineChosen(context, frame);
    this.#outlineCursor(context);
    this.#read();
  }

  /** Gives cells their size, and the canvas its own. */
  #layOut({ layers }) {
    const { columns } = this.heat;
    const room = this.canvas.parentElement.clientWidth - MARGIN.left - 2;
    const fitting = (pixels, most) => Math.max(CELL.least, Math.min(most, Math.floor(pixels)));
    this.cell = { width: fitting(room / columns, CELL.widest), height: fitting(HIGHEST / layers, CELL.highest) };
    const width = this.cell.width * columns;
    const height = this.cell.height * layers;
    const ratio = window.devicePixelRatio;
    const whole = [MARGIN.left + width + 2, MARGIN.top + height + 2];
    const [across, down] = whole.map((pixels) => Math.round(pixels * ratio));
    if (this.canvas.width !== across || this.canvas.height !== down) {
      Object.assign(this.canvas, { width: across, height: down });
      Object.assign(this.canvas.style, { width: `${whole[0]}px`, height: `${whole[1]}px` });
    }
    this.canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
    return { width, height };
  }

  #paintSmall({ layers, tiers }) {
    const { columns, recent } = this.heat;
    Object.assign(this.#small, { width: columns, height: layers });
    const context = this.#small.getContext("2d");
    const picture = context.createImageData(columns, layers);
    const pixels = new Uint32Array(picture.data.buffer);
    const hottest = Math.max(4, greatest(recent));
    tiers.forEach((letters, layer) => {
      for (let expert = 0; expert < letters.length; expert += 1) {
        const cell = layer * columns + expert;
        const shade = Math.round((SHADES - 1) * Math.sqrt(recent[cell] / hottest));
        pixels[cell] = this.#colours.shades[letters[expert]][shade];
      }
    });
    context.putImageData(picture, 0, 0);
  }

  #separate(context, width, height) {
    const { width: across, height: down } = this.cell;
    context.fillStyle = this.#colours.page;
    if (across >= GAP_FROM) {
      for (let x = across; x <= width; x += across) context.fillRect(MARGIN.left + x - 1, MARGIN.top, 1, height);
    }
    if (down >= GAP_FROM) {
      for (let y = down; y <= height; y += down) context.fillRect(MARGIN.left, MARGIN.top + y - 1, width, 1);
    }
  }

  #number(context, { layers }) {
    context.fillStyle = this.#colours.muted;
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.textAlign = "right";
    const rows = every(18 / this.cell.height);
    for (let layer = 0; layer < layers; layer += rows) {
      context.fillText(layer, MARGIN.left - 6, MARGIN.top + (layer + 0.5) * this.cell.height);
    }
    context.textAlign = "center";
    const columns = every(36 / this.cell.width);
    for (let expert = 0; expert < this.heat.columns; expert += columns) {
      context.fillText(expert, MARGIN.left + (expert + 0.5) * this.cell.width, MARGIN.top / 2);
    }
  }

  #outlineChosen(context, { chosen }) {
    context.strokeStyle = this.#colours.text;
    context.lineWidth = Math.min(2, this.cell.width / 3);
    context.beginPath();
    chosen.forEach((experts, layer) => {
      for (const expert of experts) context.rect(...this.#inside(layer, expert, context.lineWidth / 2));
    });
    context.stroke();
  }

  #outlineCursor(context) {
    if (!this.#cursor) return;
    context.strokeStyle = this.#colours.focus;
    context.lineWidth = 3;
    context.strokeRect(...this.#inside(this.#cursor.layer, this.#cursor.expert, -1));
  }

  #inside(layer, expert, by) {
    const { width, height } = this.cell;
    const gap = width >= GAP_FROM ? 1 : 0;
    const left = MARGIN.left + expert * width + by;
    const top = MARGIN.top + layer * height + by;
    return [left, top, width - gap - 2 * by, height - (height >= GAP_FROM ? 1 : 0) - 2 * by];
  }

  #cellAt({ offsetX, offsetY }) {
    const { frame } = this.heat;
    if (!frame) return null;
    const layer = Math.floor((offsetY - MARGIN.top) / this.cell.height);
    const expert = Math.floor((offsetX - MARGIN.left) / this.cell.width);
    return layer >= 0 && expert >= 0 && expert < frame.experts[layer] ? { layer, expert } : null;
  }

  #pressed(event) {
    const move = MOVES[event.key];
    const { frame } = this.heat;
    if (!move || !frame) return;
    event.preventDefault();
    const from = this.#cursor ?? { layer: 0, expert: 0 };
    const layer = bounded(from.layer + move[0], frame.layers);
    this.#moveTo({ layer, expert: bounded(from.expert + move[1], frame.experts[layer]) }, true);
  }

  /** Puts the cursor on a cell; `aloud`: a screen reader says which. */
  #moveTo(cursor, aloud) {
    this.#cursor = cursor;
    this.readout.setAttribute("aria-live", aloud ? "polite" : "off");
    this.draw();
    this.readout.setAttribute("aria-live", "off");
  }

  #read() {
    const text = this.#cursor ? this.#said(this.#cursor) : "Point at an expert, or move with the arrow keys.";
    if (this.readout.textContent !== text) this.readout.textContent = text;
  }

  #said({ layer, expert }) {
    const { frame, uses, columns } = this.heat;
    const tier = TIER_NAMES[frame.tiers[layer][expert]];
    const chosen = frame.chosen[layer].includes(expert) ? ", chosen by the last token" : "";
    const used = uses[layer * columns + expert];
    return `Layer ${layer}, expert ${expert}: ${tier}, ${count(used)} ${used === 1 ? "use" : "uses"}${chosen}`;
  }
}

function bounded(number, count) {
  return Math.max(0, Math.min(count - 1, number));
}

/** A round step of at least so many. */
function every(least) {
  return [1, 2, 4, 8, 16, 32, 64, 128, 256].find((step) => step >= least) ?? 512;
}

function greatest(numbers) {
  let most = 0;
  for (const number of numbers) if (number > most) most = number;
  return most;
}

/** The theme's colours, and for each tier its shades as pixels. */
function coloursOf(canvas) {
  const style = getComputedStyle(canvas);
  const named = (name) => style.getPropertyValue(`--${name}`).trim();
  const shades = {};
  for (const [letter, tier] of Object.entries(TIERS)) {
    shades[letter] = shadesBetween(bytes(named(`${tier}-idle`)), bytes(named(`${tier}-hot`)));
  }
  return { shades, page: named("surface"), text: named("text"), muted: named("muted"), focus: named("focus") };
}

function shadesBetween(idle, hot) {
  return Uint32Array.from({ length: SHADES }, (_, step) => {
    const part = step / (SHADES - 1);
    const [red, green, blue] = idle.map((from, channel) => Math.round(from + part * (hot[channel] - from)));
    return new Uint32Array(new Uint8Array([red, green, blue, 255]).buffer)[0];
  });
}

/** "#0072b2" -> [0, 114, 178] */
function bytes(colour) {
  return [1, 3, 5].map((place) => Number.parseInt(colour.slice(place, place + 2), 16));
}
