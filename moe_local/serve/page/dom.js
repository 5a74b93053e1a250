// Elements by their parts. Text only ever becomes text nodes.

/** An element with properties (`class`, `role` and what has a dash are attributes) and children; strings are text. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class" || name === "role" || name.includes("-")) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

export function button(label, onclick, properties = {}) {
  return element("button", { type: "button", onclick, ...properties }, label);
}

/** Puts text on the clipboard, also where the page is not served over https; says so on the button. */
export async function copy(text, pressed) {
  const label = pressed.textContent;
  const done = await toClipboard(text);
  pressed.textContent = done ? "Copied" : "Not copied";
  setTimeout(() => (pressed.textContent = label), 1500);
}

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copySelected(text);
  }
}

function copySelected(text) {
  const focused = document.activeElement;
  const field = element("textarea", { value: text, class: "visually-hidden", "aria-hidden": "true" });
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return done;
}
