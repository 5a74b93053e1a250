// One message of the conversation, as it is shown.

import { button, copy, element } from "./dom.js";
import { Markdown } from "./markdown.js";
import { count, figures, seconds } from "./numbers.js";

/** What the user wrote; `onEdit` is called to change it, where it may be. */
export function userMessage({ text }, onEdit) {
  const body = element("div", { class: "body", dir: "auto" }, text);
  const made = element("article", { class: "message user", "aria-label": "You" }, body);
  if (onEdit) made.append(element("div", { class: "actions" }, button("Edit", onEdit, { class: "quiet" })));
  return made;
}

/** An answer, which may still grow. */
export class Answer {
  #pending = { text: "", reasoning: "" }; // not shown yet
  #due = null; // the timer that will show it
  #cost = 0; // milliseconds that it took the last time

  /** `onBlock` is told of each block of text that is complete, `onRegenerate` is called for another answer. */
  constructor(message, { onBlock, onRegenerate }) {
    this.message = message;
    this.onRegenerate = onRegenerate;
    this.text = element("div", { class: "body", dir: "auto" });
    this.reasoning = element("div", { class: "body", dir: "auto" });
    this.thoughts = element("details", { class: "reasoning", hidden: true });
    this.thoughts.append(element("summary", {}, "Reasoning"), this.reasoning);
    this.foot = element("div", { class: "foot" });
    this.root = element("article", { class: "message assistant", "aria-label": "Answer" });
    this.root.append(this.thoughts, this.text, this.foot);
    this.markdown = { text: new Markdown(this.text, onBlock), reasoning: new Markdown(this.reasoning) };
  }

  /** Adds to the message and, soon, to what is shown: at most a fifth of the time goes into showing. */
  grow(part, text, onShown = () => {}) {
    this.message[part] += text;
    this.#pending[part] += text;
    this.#due ??= setTimeout(() => {
      this.#show();
      onShown();
    }, Math.max(40, 4 * this.#cost));
  }

  #show() {
    const began = performance.now();
    clearTimeout(this.#due);
    this.#due = null;
    for (const part of ["reasoning", "text"]) {
      if (this.#pending[part]) this.markdown[part].append(this.#pending[part]);
      this.#pending[part] = "";
    }
    this.thoughts.hidden = !this.message.reasoning;
    this.#cost = performance.now() - began;
  }

  /** Shows all of a message that is complete, with what can be done about it. */
  finish({ last }) {
    this.#show();
    for (const part of Object.values(this.markdown)) part.finish();
    this.foot.replaceChildren(...this.#notes(), this.#actions(last));
  }

  /** Shows a message that was complete before. */
  restore(options) {
    this.#pending = { text: this.message.text, reasoning: this.message.reasoning };
    this.finish(options);
  }

  #notes() {
    const { error, note, stats } = this.message;
    const notes = [];
    if (error) notes.push(element("p", { class: "error", role: "alert" }, error));
    if (note) notes.push(element("p", { class: "note" }, note));
    if (stats?.tokens) notes.push(element("p", { class: "stats" }, statsText(stats)));
    return notes;
  }

  #actions(last) {
    const { text, error } = this.message;
    const made = element("div", { class: "actions" });
    if (text) made.append(button("Copy", (event) => copy(text, event.currentTarget), { class: "quiet" }));
    if (last) made.append(button(error ? "Try again" : "Regenerate", this.onRegenerate, { class: "quiet" }));
    return made;
  }
}

/** "12.3 tokens/s · first after 0.29 s · ..." */
export function statsText({ tokens, firstAfter, elapsed, cached, prompt, context }) {
  const said = [];
  const decoding = elapsed - firstAfter;
  if (tokens > 1 && decoding > 0) said.push(`${figures((tokens - 1) / decoding)} tokens/s`);
  if (firstAfter !== null) said.push(`first after ${seconds(firstAfter)}`);
  if (tokens) said.push(`${count(tokens)} ${tokens === 1 ? "token" : "tokens"}`);
  if (prompt) {
    said.push(`${count(cached ?? 0)} of ${count(prompt)} prompt tokens cached`);
    said.push(`context ${count(prompt + tokens)}${context ? ` of ${count(context)}` : ""}`);
  }
  return said.join(" · ");
}
