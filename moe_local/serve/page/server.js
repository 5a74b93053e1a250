// Requests to the server that this page came from, with the key that it may ask for, and errors in words.

import { askForKey } from "./key.js";

const UNREACHABLE = "The server cannot be reached. It may have ended, or the connection is down.";
const CUT = "The connection was lost before the answer was complete.";

/** What went wrong, told to the user; `status` is HTTP's, 0 without an answer. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** The response to a request, a POST where there is a `body`. Throws ServerError for any that is not well. */
export async function ask(path, { body, signal } = {}) {
  for (let tries = 0; ; tries += 1) {
    const response = await send(path, body, signal);
    if (response.status === 401) {
      if (await askForKey(tries > 0)) continue;
      throw new ServerError("The server wants an API key.", 401);
    }
    if (!response.ok) throw await refusal(response);
    return response;
  }
}

async function send(path, body, signal) {
  const key = sessionStorage.getItem("moe-local.key");
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  try {
    return await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServerError(UNREACHABLE);
  }
}

async function refusal(response) {
  const text = await response.text().catch(() => "");
  const { status, headers } = response;
  return new ServerError(inWords(status, saidIn(text), headers.get("Retry-After")), status);
}

function saidIn(text) {
  try {
    const said = JSON.parse(text);
    return errorText(said.error ?? said.detail) ?? "";
  } catch {
    return "";
  }
}

/** What an error of OpenAI's shape, or a plain text, says. */
export function errorText(error) {
  if (error == null) return null;
  return typeof error === "string" ? error : (error.message ?? JSON.stringify(error));
}

function inWords(status, said, retryAfter) {
  const wait = Number(retryAfter) > 0 ? ` Try again in ${retryAfter} s.` : "";
  if (status === 429) return `The server is busy: it has as many requests as it takes.${wait}`;
  if (status === 503) return `The server is not ready${said ? `: ${said}` : "."}${wait}`;
  return said || `The server answered ${status}.`;
}

/** The data of each server-sent event. Throws ServerError when the connection breaks. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await read(reader);
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const data = dataOf(part);
        if (data) yield data;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServerError(CUT);
  }
}

function dataOf(event) {
  const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
}

/** The chunks of a streamed chat completion, to its end. Throws ServerError also for an error in their midst. */
export async function* completion(body, signal) {
  const response = await ask("v1/chat/completions", { body, signal });
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(errorText(chunk.error));
    yield chunk;
  }
  throw new ServerError(CUT);
}
