// Puts the page together: waits for the server, names the model, switches views and themes.

import { Chat } from "./chat.js";
import { element } from "./dom.js";
import { Experts } from "./experts.js";
import { count } from "./numbers.js";
import { ask, errorText } from "./server.js";

const at = (id) => document.getElementById(id);
const AGAIN = 1000; // milliseconds from one question whether the server is ready to the next
const tabs = [...document.querySelectorAll("[role=tab]")];
const chat = new Chat();
const experts = new Experts();

function select(tab) {
  for (const each of tabs) {
    const selected = each === tab;
    each.setAttribute("aria-selected", String(selected));
    each.tabIndex = selected ? 0 : -1;
    at(each.getAttribute("aria-controls")).hidden = !selected;
  }
  experts.show(tab.id === "tab-experts");
}

function pressed(event) {
  const place = tabs.indexOf(event.currentTarget);
  const next = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  const tab = tabs.at(next % tabs.length);
  tab.focus();
  open(tab);
}

function open(tab) {
  history.replaceState(null, "", `#${tab.dataset.view}`);
  select(tab);
}

function named() {
  return tabs.find((tab) => tab.dataset.view === location.hash.slice(1)) ?? tabs[0];
}

const themed = document.documentElement.dataset; // by theme.js

function showTheme() {
  at("theme").setAttribute("aria-pressed", String(themed.theme === "dark"));
  experts.repaint();
}

function switchTheme() {
  themed.theme = themed.theme === "dark" ? "light" : "dark";
  localStorage.setItem("moe-local.theme", themed.theme);
  showTheme();
}

/** Waits until the server has loaded its model, and says how far it is. */
async function ready() {
  for (;;) {
    const health = await fetch("health", { cache: "no-store" }).catch(() => null);
    if (health?.ok) return say("");
    say(health ? await progressOf(health) : "The server cannot be reached. Trying again…");
    await new Promise((resolve) => setTimeout(resolve, AGAIN));
  }
}

async function progressOf(health) {
  const said = await health.json().catch(() => ({}));
  if (said.status === "ending") return "The server is ending.";
  const share = typeof said.progress === "number" ? ` (${Math.round(100 * said.progress)}%)` : "";
  const stage = said.stage ?? errorText(said.error);
  return `The model is being loaded${stage ? `: ${stage}` : ""}${share}…`;
}

function say(text) {
  at("banner").hidden = !text;
  if (at("banner").textContent !== text) at("banner").textContent = text;
}

async function learnModel() {
  const [models, facts] = await Promise.all([json("v1/models"), json("api/facts")]);
  const { id } = models.data[0];
  showFacts(id, facts);
  const context = Number(facts.context);
  chat.use({ id, context: Number.isFinite(context) && context > 0 ? context : null });
}

async function json(path) {
  return (await ask(path)).json();
}

function showFacts(id, facts) {
  at("model").textContent = id;
  at("model").hidden = false;
  at("welcome-model").textContent = id;
  document.title = `${id} · moe-local`;
  const pairs = Object.entries(facts).filter(([, value]) => value !== null && value !== "");
  at("facts").replaceChildren(
    ...pairs.map(([name, value]) => {
      return element("div", {}, element("dt", {}, inWords(name)), element("dd", {}, shown(value)));
    }),
  );
}

/** "ram_budget" -> "Ram budget" */
function inWords(name) {
  const words = name.replaceAll("_", " ");
  return words[0].toUpperCase() + words.slice(1);
}

function shown(value) {
  if (typeof value === "number") return count(value);
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

async function begin() {
  select(named());
  showTheme();
  try {
    await ready();
    await learnModel();
    if (document.activeElement === document.body) at("prompt").focus({ preventScroll: true });
  } catch (error) {
    say(error.message);
  }
}

for (const tab of tabs) {
  tab.addEventListener("click", () => open(tab));
  tab.addEventListener("keydown", pressed);
}
window.addEventListener("hashchange", () => select(named()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
at("theme").addEventListener("click", switchTheme);
at("model").addEventListener("click", () => at("facts-dialog").showModal());
at("facts-close").addEventListener("click", () => at("facts-dialog").close());
begin();
