// Markdown inside a paragraph, as DOM nodes. The text is a model's: whatever it holds ends up in text nodes, and in
// links to http and https alone, whose target is shown.

import { element } from "./dom.js";

const LONGEST = 10_000; // characters of a paragraph that are looked at; a longer one is text
const SPECIAL = /\\(?=[!-/:-@[-`{-~])|`+|\*\*|__|~~|\*|_|!?\[|https?:\/\//g;
const ADDRESS = String.raw`[^\s<>()]{1,2000}(?:\([^\s<>()]{0,500}\)[^\s<>()]{0,500})?`;
const LINK = new RegExp(String.raw`!?\[([^[\]\n]{1,500})\]\(\s*<?(${ADDRESS})>?(?:\s+"[^"\n]{0,300}")?\s*\)`, "y");
const BARE = /https?:\/\/[^\s<>"'`*[\]]{1,2000}/y;
const MARKS = { "**": "strong", __: "strong", "~~": "del", "*": "em", _: "em" };

/** The nodes of a text: emphasis, code, links. */
export function inline(text) {
  const made = document.createDocumentFragment();
  if (text.length > LONGEST) {
    made.append(text);
    return made;
  }
  const state = { text, hopeless: new Set() }; // marks that do not come again in this text
  let from = 0;
  for (let at = next(text, 0); at; at = next(text, at.end)) {
    const found = read(state, at);
    if (!found) continue;
    made.append(text.slice(from, at.start), ...found.nodes);
    from = at.end = found.end;
  }
  made.append(text.slice(from));
  return made;
}

function next(text, from) {
  SPECIAL.lastIndex = from;
  const match = SPECIAL.exec(text);
  return match && { mark: match[0], start: match.index, end: SPECIAL.lastIndex };
}

function read(state, at) {
  if (at.mark === "\\") return { nodes: [state.text[at.end]], end: at.end + 1 };
  if (at.mark[0] === "`") return code(state, at);
  if (at.mark.endsWith("[")) return link(state, at);
  if (at.mark.startsWith("http")) return bare(state, at);
  return emphasis(state, at);
}

function code({ text, hopeless }, at) {
  const end = closing(text, hopeless, at.mark, at.end, (place) => {
    return text[place - 1] !== "`" && text[place + at.mark.length] !== "`";
  });
  if (end < 0) return null;
  const inside = text.slice(at.end, end).replaceAll("\n", " ");
  const padded = inside.startsWith(" ") && inside.endsWith(" ") && inside.trim() !== "";
  const shown = padded ? inside.slice(1, -1) : inside;
  return { nodes: [element("code", {}, shown)], end: end + at.mark.length };
}

function emphasis({ text, hopeless }, at) {
  const { mark } = at;
  if (!/\S/.test(text[at.end] ?? " ")) return null;
  if (mark[0] === "_" && /[\p{L}\p{N}]/u.test(text[at.start - 1] ?? "")) return null; // snake_case
  const end = closing(text, hopeless, mark, at.end, (place) => closes(text, mark, place));
  if (end <= at.end) return null;
  return { nodes: [element(MARKS[mark], {}, inline(text.slice(at.end, end)))], end: end + mark.length };
}

function closes(text, mark, place) {
  if (!/\S/.test(text[place - 1])) return false;
  const after = text[place + mark.length] ?? "";
  if (mark[0] === "_" && /[\p{L}\p{N}]/u.test(after)) return false;
  return mark.length > 1 || (after !== mark && text[place - 1] !== mark);
}

/** Where a mark closes; -1 where nowhere, which is then not looked for again. */
function closing(text, hopeless, mark, from, fits) {
  if (hopeless.has(mark)) return -1;
  for (let place = text.indexOf(mark, from); place >= 0; place = text.indexOf(mark, place + 1)) {
    if (fits(place)) return place;
  }
  hopeless.add(mark);
  return -1;
}

function link({ text }, at) {
  LINK.lastIndex = at.start;
  const match = LINK.exec(text);
  const target = match && webAddress(match[2]);
  if (!target) return null;
  const shown = match[1] === match[2] ? [] : [" ", element("span", { class: "target" }, `(${short(target.href)})`)];
  return { nodes: [anchor(target, inline(match[1])), ...shown], end: LINK.lastIndex };
}

function bare({ text }, at) {
  BARE.lastIndex = at.start;
  const match = BARE.exec(text)?.[0].replace(/[.,;:!?]+$|\)[.,;:!?]*$/, "");
  const target = match && webAddress(match);
  return target ? { nodes: [anchor(target, match)], end: at.start + match.length } : null;
}

function webAddress(text) {
  const target = URL.parse ? URL.parse(text) : parsed(text);
  return target && (target.protocol === "http:" || target.protocol === "https:") ? target : null;
}

function parsed(text) {
  try {
    return new URL(text);
  } catch {
    return null;
  }
}

function anchor(target, shown) {
  return element("a", { href: target.href, target: "_blank", rel: "noopener noreferrer" }, shown);
}

function short(address) {
  return address.length > 80 ? `${address.slice(0, 79)}…` : address;
}
