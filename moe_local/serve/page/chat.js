// The view that talks with the model.

import { Conversation } from "./conversation.js";
import { element } from "./dom.js";
import { Answer, statsText, userMessage } from "./message.js";
import { completion } from "./server.js";

const at = (id) => document.getElementById(id);
const NEAR = 120; // pixels from the end: whoever is there wants to see what comes
const TOLD = 1000; // milliseconds from one status to the next while an answer comes

export class Chat {
  #conversation = new Conversation();
  #model = null; // {id, context}
  #stop = null; // of the answer that is coming

  constructor() {
    at("composer").addEventListener("submit", (event) => this.#submitted(event));
    at("prompt").addEventListener("keydown", (event) => this.#pressed(event));
    at("prompt").addEventListener("input", fit);
    at("new-chat").addEventListener("click", () => this.#startAnew());
    document.addEventListener("keydown", (event) => this.#escaped(event));
    this.#bindSettings();
    this.#showAll();
  }

  /** From now on messages go to this model. */
  use(model) {
    this.#model = model;
    at("send").disabled = false;
  }

  #bindSettings() {
    const { settings } = this.#conversation;
    for (const [id, name] of [["system", "system"], ["temperature", "temperature"], ["max-tokens", "maxTokens"]]) {
      at(id).value = settings[name];
      at(id).addEventListener("change", (event) => {
        if (!event.target.checkValidity()) return event.target.reportValidity();
        settings[name] = event.target.value;
        this.#conversation.save();
      });
    }
  }

  #pressed(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!this.#stop) at("composer").requestSubmit();
  }

  #escaped(event) {
    if (event.key === "Escape" && this.#stop && !document.querySelector("dialog[open]")) this.#stop.abort();
  }

  #submitted(event) {
    event.preventDefault();
    if (this.#stop) return this.#stop.abort();
    const text = at("prompt").value.trim();
    if (!text || !this.#model) return;
    at("prompt").value = "";
    fit();
    this.#conversation.messages.push({ role: "user", text });
    this.#answer();
  }

  #startAnew() {
    this.#stop?.abort();
    this.#isBusy(null);
    this.#conversation.clear();
    this.#showAll();
    at("prompt").focus();
  }

  #editLast() {
    at("prompt").value = this.#conversation.takeBackLast();
    this.#conversation.save();
    this.#showAll();
    fit();
    at("prompt").focus();
    tell("Your last message is taken back for you to change.");
  }

  #regenerate() {
    this.#conversation.messages.pop();
    this.#answer();
    at("prompt").focus();
  }

  /** Shows the conversation as it is, without an answer that is coming. */
  #showAll() {
    const { messages } = this.#conversation;
    const lastOfUser = messages.findLastIndex(({ role }) => role === "user");
    const shown = messages.map((message, place) => {
      if (message.role === "user") return userMessage(message, place === lastOfUser ? () => this.#editLast() : null);
      const answer = this.#shown(message, () => {});
      answer.restore({ last: place === messages.length - 1 });
      return answer.root;
    });
    at("messages").replaceChildren(...shown);
    at("welcome").hidden = messages.length > 0;
    at("spoken").replaceChildren();
  }

  #shown(message, onBlock) {
    return new Answer(message, { onBlock, onRegenerate: () => this.#regenerate() });
  }

  /** Asks for the answer to the last message, and shows it as it comes. */
  async #answer() {
    const body = this.#conversation.request(this.#model.id);
    this.#showAll();
    withoutActions();
    const message = { role: "assistant", text: "", reasoning: "", note: "", error: "", stats: null };
    const { messages } = this.#conversation;
    const answer = this.#shown(message, speak);
    const stop = new AbortController();
    messages.push(message);
    at("messages").append(answer.root);
    this.#isBusy(stop);
    await this.#receive(body, answer, stop.signal);
    if (messages !== this.#conversation.messages) return; // another conversation has begun
    this.#isBusy(null);
    this.#finish(answer);
  }

  async #receive(body, answer, signal) {
    const { message } = answer;
    const watch = new Stopwatch(this.#model.context);
    try {
      for await (const chunk of completion(body, signal)) {
        watch.see(chunk);
        this.#take(chunk, answer);
        if (watch.isDue()) showStatus(statsText(watch.stats()));
      }
    } catch (error) {
      if (error.name === "AbortError") message.note = "Stopped.";
      else message.error = error.message;
    }
    message.stats = watch.stats();
  }

  #take(chunk, answer) {
    const [choice] = chunk.choices ?? [];
    if (!choice) return;
    const { delta } = choice;
    const follow = isAtEnd();
    const shown = () => follow && scrollToEnd();
    if (delta?.reasoning_content) answer.grow("reasoning", delta.reasoning_content, shown);
    if (delta?.content) answer.grow("text", delta.content, shown);
    for (const call of delta?.tool_calls ?? []) answer.grow("text", callText(call.function ?? {}), shown);
    if (choice.finish_reason === "length") answer.message.note = "Cut off: the limit of tokens is reached.";
  }

  #finish(answer) {
    const follow = isAtEnd();
    answer.finish({ last: true });
    this.#conversation.save();
    tell(answer.message.error ? "" : answer.message.note || "The answer is complete."); // an error is an alert
    const [edited] = [...document.querySelectorAll("#messages .user")].slice(-1);
    edited.replaceWith(userMessage(this.#conversation.messages.at(-2), () => this.#editLast()));
    if (follow) scrollToEnd();
  }

  #isBusy(stop) {
    this.#stop = stop;
    at("send").textContent = stop ? "Stop" : "Send";
    at("messages").setAttribute("aria-busy", String(Boolean(stop)));
    showStatus(stop ? "Waiting for the first token…" : "");
    if (!stop) return;
    tell("Answering.");
    scrollToEnd();
  }
}

/** Times of an answer that comes in chunks. */
class Stopwatch {
  #began = performance.now();
  #first = null;
  #latest = null;
  #told = 0;
  #pieces = 0;
  #usage = null;

  constructor(context) {
    this.context = context;
  }

  see({ choices, usage }) {
    if (usage) this.#usage = usage;
    const delta = choices?.[0]?.delta;
    if (!delta || !(delta.content || delta.reasoning_content || delta.tool_calls)) return;
    this.#latest = performance.now();
    this.#first ??= this.#latest;
    this.#pieces += 1;
  }

  isDue() {
    if (!this.#first || performance.now() - this.#told < TOLD) return false;
    this.#told = performance.now();
    return true;
  }

  /** Pieces stand for tokens until the server has counted them. */
  stats() {
    return {
      tokens: this.#usage?.completion_tokens ?? this.#pieces,
      firstAfter: this.#first && (this.#first - this.#began) / 1000,
      elapsed: ((this.#latest ?? performance.now()) - this.#began) / 1000,
      cached: this.#usage?.prompt_tokens_details?.cached_tokens ?? 0,
      prompt: this.#usage?.prompt_tokens ?? 0,
      context: this.context,
    };
  }
}

/** A call of a tool, as text: this page has no tools to offer, but shows what a model says. */
function callText({ name, arguments: given }) {
  return `${name ? `\n\n${name} ` : ""}${given ?? ""}`;
}

function withoutActions() {
  for (const actions of document.querySelectorAll("#messages .actions")) actions.remove();
}

/** For screen readers: a block of the answer, once it is complete. */
function speak(text) {
  at("spoken").append(element("p", {}, text));
}

/** Under the message that is written: how the answer comes along, else which keys do what. */
function showStatus(text) {
  at("status").textContent = text;
  at("status").hidden = !text;
  at("keys").hidden = Boolean(text);
}

function tell(text) {
  at("told").textContent = text;
}

/** As high as its text, up to a third of the window. */
function fit() {
  const field = at("prompt");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight + 2, window.innerHeight / 3)}px`;
}

function isAtEnd() {
  const { scrollHeight, scrollTop, clientHeight } = document.documentElement;
  return scrollHeight - scrollTop - clientHeight < NEAR;
}

function scrollToEnd() {
  window.scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
}
