// A model's Markdown as DOM nodes, while it is still being written: blocks that are complete are made once, and only
// the last one is made again as it grows.

import { blocksOf } from "./blocks.js";
import { button, copy, element } from "./dom.js";
import { inline } from "./inline.js";

const DEEPEST = 6; // lists and quotes within each other; deeper ones are text

/** An answer in `root` that grows. */
export class Markdown {
  #growing = ""; // the text of the blocks that are not complete
  #nodes = []; // and their nodes

  /** `onBlock` is told of each block that is complete: its text as it is shown. */
  constructor(root, onBlock = () => {}) {
    this.root = root;
    this.onBlock = onBlock;
  }

  append(text) {
    this.#growing += text;
    const blocks = blocksOf(this.#growing);
    for (const node of this.#nodes) node.remove();
    const complete = blocks.filter((_, at) => this.#isFollowed(blocks[at + 1])).length;
    for (const block of blocks.slice(0, complete)) this.#complete(block);
    this.#nodes = blocks.slice(complete).map((block) => nodeOf(block, 0));
    this.root.append(...this.#nodes);
    if (complete) this.#growing = this.#growing.slice(blocks[complete].start);
  }

  /** No more text comes. */
  finish() {
    for (const node of this.#nodes) this.onBlock(spoken(node));
    this.#growing = "";
    this.#nodes = [];
  }

  /** Whether the block before `next` is complete: so are the lines that `next` is known by, and it cannot go on. */
  #isFollowed(next) {
    if (next === undefined) return false;
    const end = this.#growing.indexOf("\n", next.start);
    return end >= 0 && (next.kind !== "table" || this.#growing.includes("\n", end + 1)); // "-" may become "- one"
  }

  #complete(block) {
    const node = nodeOf(block, 0);
    this.root.append(node);
    this.onBlock(spoken(node));
  }
}

/** What is read out of a block: not its buttons. */
function spoken(node) {
  if (!node.querySelector?.("button")) return node.textContent;
  const copied = node.cloneNode(true);
  for (const each of copied.querySelectorAll("button")) each.remove();
  return copied.textContent;
}

const MAKERS = {
  code: ({ language, text }) => codeBlock(language, text),
  heading: ({ level, text }) => element(`h${Math.min(6, level + 2)}`, {}, inline(text)), // below the page's own
  rule: () => element("hr"),
  quote: ({ text }, depth) => element("blockquote", {}, ...inside(text, depth)),
  list,
  table,
  paragraph: ({ text }) => element("p", {}, inline(text)),
};

function nodeOf(block, depth) {
  return MAKERS[block.kind](block, depth);
}

function inside(text, depth) {
  return depth < DEEPEST ? blocksOf(text).map((block) => nodeOf(block, depth + 1)) : [text];
}

function codeBlock(language, text) {
  const shown = element("pre", { tabIndex: 0 }, element("code", {}, text));
  const copies = button("Copy", (event) => copy(text, event.currentTarget), { "aria-label": "Copy code" });
  const head = element("div", { class: "code-head" }, element("span", {}, language || "text"), copies);
  return element("div", { class: "code" }, head, shown);
}

function list({ ordered, first, items }, depth) {
  const made = element(ordered ? "ol" : "ul", ordered ? { start: first } : {});
  for (const item of items) made.append(element("li", {}, ...tight(inside(item, depth))));
  return made;
}

/** An item's only paragraph, or the one before what it holds, without the space around a paragraph. */
function tight(nodes) {
  const [first, ...others] = nodes;
  if (first?.tagName !== "P") return nodes;
  return [...first.childNodes, ...others];
}

function table({ head, alignments, rows }) {
  const cell = (tag, text, column) => {
    return element(tag, { class: alignments[column] ?? "", ...(tag === "th" ? { scope: "col" } : {}) }, inline(text));
  };
  const row = (tag, texts) => element("tr", {}, ...head.map((_, column) => cell(tag, texts[column] ?? "", column)));
  const body = element("tbody", {}, ...rows.map((texts) => row("td", texts)));
  const made = element("table", {}, element("thead", {}, row("th", head)), body);
  return element("div", { class: "wide", tabIndex: 0, role: "group", "aria-label": "Table" }, made);
}
