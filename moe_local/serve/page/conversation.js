// What was said, kept as long as the tab is open, and what of it a model is given.

const KEPT = "moe-local.conversation";
const SETTINGS = "moe-local.settings";
const UNSET = { system: "", temperature: "", maxTokens: "" };

/** Messages: {role: "user", text}, {role: "assistant", text, reasoning, note, error, stats}. */
export class Conversation {
  messages = kept(KEPT, []);
  settings = { ...UNSET, ...kept(SETTINGS, {}) };

  save() {
    keep(KEPT, this.messages);
    keep(SETTINGS, this.settings);
  }

  clear() {
    this.messages = [];
    this.save();
  }

  /** Takes back the last message of the user with what was answered; -> its text. */
  takeBackLast() {
    const place = this.messages.findLastIndex(({ role }) => role === "user");
    const [taken] = this.messages.splice(place);
    return taken.text;
  }

  /** The body of a request for the next answer. */
  request(model) {
    const { system, temperature, maxTokens } = this.settings;
    const messages = system.trim() ? [{ role: "system", content: system }] : [];
    const body = { model, stream: true, stream_options: { include_usage: true } };
    if (temperature !== "") body.temperature = Number(temperature);
    if (maxTokens !== "") body.max_completion_tokens = Number(maxTokens);
    body.messages = [...messages, ...this.#answered()];
    return body;
  }

  /** The messages that have an answer, and the last one: a model is not told of what failed. */
  #answered() {
    return this.messages.flatMap((message, place) => {
      const next = this.messages[place + 1];
      const failed = message.role === "assistant" ? !message.text : next && !next.text;
      return failed ? [] : [{ role: message.role, content: message.text }];
    });
  }
}

function kept(name, otherwise) {
  try {
    return JSON.parse(sessionStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function keep(name, value) {
  try {
    sessionStorage.setItem(name, JSON.stringify(value));
  } catch {
    sessionStorage.removeItem(name); // too long for the browser: it is lost with the tab's next load
  }
}
