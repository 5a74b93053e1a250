// Runs before anything is drawn: the theme that was chosen here, else the system's, from the first picture on.
const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function setTheme() {
  const preferred = prefersDark.matches ? "dark" : "light";
  document.documentElement.dataset.theme = localStorage.getItem("moe-local.theme") ?? preferred;
}

setTheme();
prefersDark.addEventListener("change", setTheme);
