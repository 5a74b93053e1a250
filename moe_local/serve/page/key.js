// The dialog that asks for the server's API key, which is kept as long as the tab is open.

const dialog = document.getElementById("key-dialog");
const field = document.getElementById("key");
const wrong = document.getElementById("key-wrong");
let answer = null; // a promise while the dialog is open: requests that are refused together ask once

/** Asks for the key; whether one was given. */
export function askForKey(again) {
  answer ??= new Promise((resolve) => {
    wrong.hidden = !again;
    field.value = "";
    dialog.onclose = () => {
      answer = null;
      resolve(dialog.returnValue === "given");
    };
    dialog.returnValue = "";
    dialog.showModal();
    field.focus();
  });
  return answer;
}

dialog.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("moe-local.key", field.value.trim());
  dialog.close("given");
});
document.getElementById("key-cancel").addEventListener("click", () => dialog.close(""));
