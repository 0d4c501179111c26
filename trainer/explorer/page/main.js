// Addresses, keys and the theme; then everything is started.
function go(latent) {
  const slug = list.layer < 0 ? "all" : all.slugs[list.layer];
  const hash = `#${encodeURIComponent(slug)}/${latent}`;
  if (location.hash === hash) follow();
  else location.hash = hash;
}

function follow() {
  const cut = location.hash.lastIndexOf("/");
  if (cut < 0) return;
  let slug = "";
  try { slug = decodeURIComponent(location.hash.slice(1, cut)); } catch { /* no name of a layer */ }
  const latent = Number(location.hash.slice(cut + 1));
  const layer = all.slugs.indexOf(slug);
  if ((slug !== "all" && layer < 0) || !Number.isInteger(latent) || latent < 0 || latent >= all.m) {
    byId("view").replaceChildren(make("p", { role: "alert", text: `There is no latent ${location.hash} here.` }));
    return;
  }
  if (layer !== list.layer) {
    list.layer = layer;
    byId("layer").value = layer;
    arrange();
  }
  list.chosen = latent;
  reveal(latent);
  showLatent(latent);
}

function startTheme() {
  const root = document.documentElement;
  const button = byId("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const show = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-pressed", String(isDark()));
  };
  try { root.dataset.theme = localStorage.getItem("actstore-theme") || ""; } catch { /* as the system has it */ }
  if (!root.dataset.theme) delete root.dataset.theme;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("actstore-theme", root.dataset.theme); } catch { /* for this page only */ }
    show();
  });
  system.addEventListener("change", show);
  show();
}

function startKeys() {
  byId("show-help").addEventListener("click", () => byId("help").showModal());
  addEventListener("keydown", (event) => {
    const types = event.target.closest("input, select, textarea, dialog[open]");
    if (event.key === "Escape" && event.target === byId("search")) byId("list").focus();
    if (types || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = {
      j: () => step(1), k: () => step(-1), r: atRandom, b: () => toggleMark(list.chosen),
      "/": () => byId("search").focus(), "?": () => byId("help").showModal(),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
}

async function start() {
  startTheme();
  try {
    await readIndex();
  } catch (error) {
    byId("count").textContent = `The index cannot be read: ${error.message}`;
    return;
  }
  startList();
  startSearch();
  startMarks();
  startKeys();
  addEventListener("hashchange", follow);
  follow();
  document.body.dataset.ready = String(Math.round(performance.now()));
}
start();
