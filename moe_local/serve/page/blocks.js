// The blocks that a Markdown text is made of, as data. Every line is looked at a fixed number of times.

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/s;
const RULE = /^ {0,3}([-*_])\s*(?:\1\s*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3}(?:[-*+]|(\d{1,9})[.)]))(?:\s+(.*)|)$/s;
const DELIMITERS = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;
const LONGEST = 2_000; // characters of a line that is looked at; a longer one is text

/** [{kind, start, ...}], where `start` is the character that the block begins at. */
export function blocksOf(text) {
  const lines = text.split("\n");
  const starts = startsOf(lines);
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (isBlank(lines[at])) {
      at += 1;
      continue;
    }
    const { end, ...block } = READERS.map((reader) => reader(lines, at)).find(Boolean);
    blocks.push({ ...block, start: starts[at] });
    at = end;
  }
  return blocks;
}

function startsOf(lines) {
  let start = 0;
  return lines.map((line) => {
    const begins = start;
    start += line.length + 1;
    return begins;
  });
}

function isBlank(line) {
  return line.length < LONGEST && line.trim() === "";
}

function matches(pattern, line) {
  return line !== undefined && line.length < LONGEST ? pattern.exec(line) : null;
}

const READERS = [fenced, heading, rule, quote, table, list, paragraph];

function fenced(lines, at) {
  const opened = matches(FENCE, lines[at]);
  if (!opened) return null;
  const closes = new RegExp(`^ {0,3}\\${opened[1][0]}{${opened[1].length},}\\s*$`);
  let end = at + 1;
  while (end < lines.length && !matches(closes, lines[end])) end += 1;
  const language = opened[2].trim().split(/\s/)[0].slice(0, 40);
  return { kind: "code", language, text: lines.slice(at + 1, end).join("\n"), end: end + 1 };
}

function heading(lines, at) {
  const found = matches(HEADING, lines[at]);
  return found && { kind: "heading", level: found[1].length, text: withoutHashes(found[2]), end: at + 1 };
}

function withoutHashes(text) {
  return text.trim().replace(/\s#+$/, "").trimEnd();
}

function rule(lines, at) {
  return matches(RULE, lines[at]) && { kind: "rule", end: at + 1 };
}

function quote(lines, at) {
  let end = at;
  while (matches(QUOTE, lines[end])) end += 1;
  const inside = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return end > at ? { kind: "quote", text: inside.join("\n"), end } : null;
}

function table(lines, at) {
  if (!beginsTable(lines, at)) return null;
  const head = cells(lines[at]);
  const alignments = cells(lines[at + 1]).map(alignment);
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|") && lines[end].length < LONGEST) end += 1;
  return { kind: "table", head, alignments, rows: lines.slice(at + 2, end).map(cells), end };
}

function beginsTable(lines, at) {
  if (!lines[at].includes("|") || !matches(DELIMITERS, lines[at + 1])) return false;
  return cells(lines[at]).length === cells(lines[at + 1]).length;
}

function cells(line) {
  const inside = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inside.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function alignment(cell) {
  if (!cell.endsWith(":")) return "";
  return cell.startsWith(":") ? "center" : "right";
}

function list(lines, at) {
  const first = matches(ITEM, lines[at]);
  if (!first) return null;
  const ordered = first[2] !== undefined;
  const items = [];
  let end = at;
  for (let item = first; item && (item[2] !== undefined) === ordered; item = matches(ITEM, lines[end])) {
    const from = end;
    end = endOfItem(lines, from);
    items.push([item[3] ?? "", ...lines.slice(from + 1, end).map((line) => dedented(line, item[1].length + 1))]);
  }
  const texts = items.map((item) => item.join("\n").trimEnd());
  return { kind: "list", ordered, first: Number(first[2] ?? 1), items: texts, end };
}

/** An item goes on over lines that are indented or go on with its paragraph, and blank ones between such. */
function endOfItem(lines, from) {
  let end = from + 1;
  for (; end < lines.length; end += 1) {
    const line = lines[end];
    if (isBlank(line)) {
      const after = lines[end + 1];
      if (after === undefined || !(isIndented(after) || isBlank(after) || matches(ITEM, after))) return end;
    } else if (!isIndented(line) && (isBlank(lines[end - 1]) || beginsBlock(line))) {
      return end;
    }
  }
  return end;
}

function isIndented(line) {
  return line.startsWith("  ") || line.startsWith("\t");
}

function dedented(line, width) {
  return line.startsWith("\t") ? line.slice(1) : line.slice(Math.min(width, line.search(/[^ ]|$/)));
}

function beginsBlock(line) {
  return [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => matches(pattern, line));
}

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && !isBlank(lines[end]) && !beginsBlock(lines[end]) && !beginsTable(lines, end)) end += 1;
  return { kind: "paragraph", text: lines.slice(at, end).join("\n"), end };
}
