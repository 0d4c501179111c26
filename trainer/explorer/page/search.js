// Search by number and token at once, and in the background in the texts of contexts.
let scanning = 0;

async function scan(text) {
  const mine = ++scanning;
  const bar = byId("scan");
  const n = Math.ceil(all.m / all.record.row_group);
  bar.hidden = false;
  let drawn = performance.now();
  for (let i = 0; i < n; i++) {
    const { latents, texts } = await chunk(i);
    if (mine !== scanning) return;
    for (const one of latents) if (mentions(one, texts, text)) list.found.add(one.latent);
    bar.value = (i + 1) / n;
    if (performance.now() - drawn > 300) {
      arrange();
      drawn = performance.now();
      // So that keys and the pointer are served in between.
      await new Promise((done) => setTimeout(done));
    }
  }
  bar.hidden = true;
  arrange();
}

function mentions(one, texts, text) {
  return one.contexts.tokens.some((tokens) => tokens.map((place) => (place < 0 ? "" : texts[place])).join("").toLowerCase().includes(text));
}

function search(text) {
  list.text = text.trim().toLowerCase();
  list.found = new Set();
  scanning += 1;
  byId("scan").hidden = true;
  byId("list").scrollTop = 0;
  arrange();
  if (list.text && !/^\d+$/.test(list.text)) scan(list.text);
}

function startSearch() {
  let waiting = 0;
  byId("search").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => search(event.target.value), 200);
  });
  byId("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(waiting);
    search(byId("search").value);
    if (list.order.length) byId("list").focus();
  });
}
