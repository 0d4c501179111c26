// The list of latents: filtered, sorted, and only as many rows as can be seen.
const ROW = 26;
const KEYS = [
  ["latent", "latent", "number"],
  ["token", "token", "commonest token of its strongest contexts"],
  ["density", "density", "share of rows it fires on"],
  ["spread", "layers", "effective number of layers of its firings"],
  ["most", "max", "largest activation"],
  ["norm", "norm", "norm of its decoder direction"],
  ["max_cosine", "cosine", "largest cosine to a latent of another run"],
  ["strength", "strength", "what it writes at most, over its layer's norm"],
  ["same_token", "same", "share of its strongest contexts with its commonest token"],
  ["alone", "alone", "share of its firings in the activations around them"],
];
const list = { order: [], key: "latent", down: false, layer: -1, text: "", found: null, chosen: -1, shown: ["density", "spread", "most", "norm"] };

function hasKey(key) {
  return key !== "max_cosine" || all.record.beside.length > 0;
}

function matches(latent) {
  if (list.layer >= 0 && !all.shares[latent * all.layers.length + list.layer]) return false;
  if (!list.text) return true;
  if (String(latent) === list.text) return true;
  return tokenOf(latent).toLowerCase().includes(list.text) || list.found.has(latent);
}

function compare(a, b) {
  if (list.key === "latent") return a - b;
  if (list.key === "token") return tokenOf(a) < tokenOf(b) ? -1 : tokenOf(a) > tokenOf(b) ? 1 : a - b;
  const column = all.columns[list.key];
  return column[a] - column[b] || a - b;
}

function arrange() {
  const order = [], last = [];
  const column = all.columns[list.key];
  for (let latent = 0; latent < all.m; latent++) {
    // What has no figure comes last, whichever way the list goes.
    if (matches(latent)) (column && Number.isNaN(column[latent]) ? last : order).push(latent);
  }
  order.sort(compare);
  if (list.down) order.reverse();
  list.order = order.concat(last);
  byId("sizer").style.height = `${list.order.length * ROW}px`;
  const layer = list.layer >= 0 ? ` at ${all.layers[list.layer]}` : "";
  byId("count").textContent = `${list.order.length.toLocaleString("en")} of ${all.m.toLocaleString("en")} latents${layer}`;
  draw();
}

function draw() {
  const box = byId("list");
  const first = Math.max(0, Math.floor(box.scrollTop / ROW) - 4);
  const end = Math.min(list.order.length, Math.ceil((box.scrollTop + box.clientHeight) / ROW) + 4);
  byId("sizer").replaceChildren(...list.order.slice(first, end).map((latent, i) => rowOf(latent, first + i)));
  const chosen = byId(`row-${list.chosen}`);
  if (chosen) box.setAttribute("aria-activedescendant", chosen.id);
  else box.removeAttribute("aria-activedescendant");
}

function rowOf(latent, place) {
  const row = make("div", {
    class: "row", role: "option", id: `row-${latent}`, "aria-selected": String(latent === list.chosen),
    "aria-posinset": place + 1, "aria-setsize": list.order.length,
  });
  row.style.top = `${place * ROW}px`;
  row.append(make("span", { text: String(latent) }), make("span", { class: "token", text: visible(tokenOf(latent)) }));
  for (const key of list.shown) row.append(make("span", { text: number(all.columns[key][latent]) }));
  row.addEventListener("click", () => go(latent));
  return row;
}

function sortBy(key) {
  // Numbers are wanted from the largest on, names and numbers of latents from the first.
  list.down = list.key === key ? !list.down : !["latent", "token"].includes(key);
  list.key = key;
  showSort();
  arrange();
}

function showSort() {
  byId("sort").value = list.key;
  byId("direction").textContent = list.down ? "↓" : "↑";
  const shown = list.shown;
  if (!["latent", "token", ...shown].includes(list.key)) shown.splice(2, 1, list.key);
  byId("browse").style.setProperty("--columns", shown.length);
  byId("head").replaceChildren(...["latent", "token", ...shown].map((key) => {
    const [, label, title] = KEYS.find(([name]) => name === key);
    const button = make("button", { type: "button", title, text: label, "aria-pressed": String(key === list.key) });
    button.addEventListener("click", () => sortBy(key));
    return button;
  }));
}

function reveal(latent) {
  const place = list.order.indexOf(latent);
  const box = byId("list");
  if (place >= 0) {
    const top = place * ROW;
    if (top < box.scrollTop) box.scrollTop = top;
    if (top + ROW > box.scrollTop + box.clientHeight) box.scrollTop = top + ROW - box.clientHeight;
  }
  draw();
}

function step(by) {
  if (!list.order.length) return;
  const place = list.order.indexOf(list.chosen);
  const next = place < 0 ? 0 : Math.min(list.order.length - 1, Math.max(0, place + by));
  go(list.order[next]);
}

function atRandom() {
  if (list.order.length) go(list.order[Math.floor(Math.random() * list.order.length)]);
}

function startList() {
  if (all.record.beside.length) list.shown.push("max_cosine");
  for (const [key, , title] of KEYS) {
    if (hasKey(key)) byId("sort").append(make("option", { value: key, text: title }));
  }
  byId("layer").append(make("option", { value: -1, text: "all" }));
  all.layers.forEach((layer, i) => byId("layer").append(make("option", { value: i, text: layer })));
  byId("sort").addEventListener("change", (event) => sortBy(event.target.value));
  byId("direction").addEventListener("click", () => sortBy(list.key));
  byId("layer").addEventListener("change", (event) => {
    list.layer = Number(event.target.value);
    arrange();
    if (list.chosen >= 0) go(list.chosen);
  });
  byId("list").addEventListener("scroll", draw, { passive: true });
  byId("list").addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 15, PageUp: -15 }[event.key];
    if (by) { event.preventDefault(); step(by); }
  });
  addEventListener("resize", draw);
  showSort();
  arrange();
}
