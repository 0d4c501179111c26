// One latent: its figures, what it writes, its neighbours, and the contexts it fires on.
const OF_LAYER = 11; // the group of the strongest context of a layer
const GROUPS = 10;

function facts(one) {
  const lines = [
    ["density", number(one.density)], ["firings", one.firings.toLocaleString("en")],
    ["effective layers", number(one.spread)], ["decoder norm", number(one.norm)],
    ["largest activation", number(one.most)], ["mean activation", number(one.mean)],
    ["strength / layer's norm", number(one.strength)], ["same token", number(one.same_token)],
    ["alone in its window", number(one.alone)],
  ];
  return make("dl", {}, ...lines.map(([name, value]) => make("div", {}, make("dt", { text: name }), make("dd", { text: value }))));
}

function charts(one) {
  const box = make("div", { class: "charts" }, histogramOf(one));
  if (all.layers.length > 1) {
    box.append(
      layerBars("Layers", "firings at each layer", one.layer_firings, all.layers),
      layerBars("Trajectory", `mean activation at each layer, on ${one.trajectory_tokens.toLocaleString("en")} sampled tokens where it fires at some layer`, one.trajectory, all.layers),
    );
  }
  if (all.outputs.length > 1) box.append(layerBars("Outputs", "norm of its decoder direction at each site", one.output_norms, all.outputs));
  if (one.logit_high !== null) box.append(logitBars(one));
  return box;
}

function linkTo(latent) {
  return make("a", { href: `#all/${latent}`, text: `${latent} ${visible(tokenOf(latent))}` });
}

function pairs(title, note, lines) {
  const items = lines.map(([left, right]) => make("li", {}, left, make("span", { text: right })));
  const body = items.length ? make("ol", { class: "links" }, ...items) : make("p", { class: "note", text: "none" });
  return make("div", {}, make("h3", { text: title }), make("p", { class: "note", text: note }), body);
}

function tokensOf(title, lines, texts) {
  return pairs(title, "centred logits", lines.map(([place, logit]) => [make("code", { text: visible(texts[place]) }), number(logit)]));
}

function neighbours(one) {
  const box = make("div", { class: "columns" });
  box.append(pairs("Nearest in this run", "cosine of decoder directions", one.near.map(([latent, cosine]) => [linkTo(latent), number(cosine)])));
  one.beside.forEach((lines, i) => {
    const run = all.record.beside[i];
    const sites = run.sites.length > 1 ? `${run.sites[0]} … ${run.sites.at(-1)}` : run.sites[0];
    box.append(pairs(`Nearest in ${run.name}`, sites, lines.map(([latent, cosine]) => [make("span", { text: String(latent) }), number(cosine)])));
  });
  const together = one.together.map(([latent, cosine, share]) => [linkTo(latent), `${number(cosine)} · ${number(share)}`]);
  box.append(pairs("Fires together with", "cosine of firings · share of its rows, on a sample of tokens", together));
  return box;
}

function contextOf(one, i, texts) {
  const contexts = one.contexts;
  const value = contexts.value[i];
  const text = make("div", { class: "text" });
  contexts.tokens[i].forEach((place, j) => {
    if (place < 0) return;
    const own = contexts.values[i][j];
    const names = [];
    const span = make("span", { text: visible(texts[place]) });
    if (own === null) { names.push("none"); span.title = "no row of this token in the store's selection"; }
    else span.title = `${visible(texts[place])}: ${number(own)}`;
    if (own > 0) { names.push("fires"); span.style.setProperty("--share", Math.min(1, own / one.most)); }
    if (j === all.record.before) names.push("here");
    if (names.length) span.className = names.join(" ");
    text.append(span);
  });
  if (!text.childNodes.length) text.append(make("span", { class: "none", text: `row ${contexts.row[i]}: no text, since the store has no tokens` }));
  const where = `${all.layers[contexts.layer[i]]} · ${number(value)}`;
  return make("div", { class: "context" }, make("div", { class: "where", text: where, title: `sequence ${contexts.sequence[i]}, position ${contexts.position[i]}` }), text);
}

function groupTitle(one, group) {
  if (group === 0) return "Strongest contexts";
  if (group === OF_LAYER) return "Strongest at other layers";
  const range = `${number(one.quantiles[group])} to ${number(one.quantiles[group - 1])}`;
  return `Quantile ${GROUPS - group + 1} of ${GROUPS}: ${range}`;
}

function contextsOf(one, texts, first, last) {
  const box = make("div", { class: "contexts" });
  let left = 0;
  for (let group = first; group <= last; group++) {
    const lines = [];
    one.contexts.group.forEach((own, i) => {
      if (own !== group) return;
      if (list.layer >= 0 && one.contexts.layer[i] !== list.layer) left += 1;
      else lines.push(contextOf(one, i, texts));
    });
    if (lines.length) box.append(make("h3", { text: groupTitle(one, group) }), ...lines);
  }
  if (left) box.append(make("p", { class: "note", text: `${left} contexts are of other layers; choose “all” to see them.` }));
  if (!one.firings && !first) box.append(make("p", { class: "note", text: "It fires on none of the rows that were looked at." }));
  return box;
}

function toolbar(one, texts) {
  const button = (text, title, act) => {
    const made = make("button", { type: "button", title, text });
    made.addEventListener("click", act);
    return made;
  };
  const star = button(isMarked(one.latent) ? "★ in list" : "☆ bookmark", "b", () => toggleMark(one.latent));
  star.id = "star";
  return make("p", { class: "buttons" },
    button("◀ previous", "k", () => step(-1)), button("next ▶", "j", () => step(1)),
    button("random", "r", atRandom), star,
    button("JSON", "all that is known of this latent", () => exportLatent(one, texts)));
}

function exportLatent(one, texts) {
  const contexts = one.contexts;
  const lines = contexts.tokens.map((tokens, i) => ({
    group: contexts.group[i], layer: all.record.layers[contexts.layer[i]], value: contexts.value[i],
    row: contexts.row[i], sequence: contexts.sequence[i], position: contexts.position[i],
    tokens: tokens.map((place) => (place < 0 ? null : texts[place])), values: contexts.values[i],
  }));
  const named = (pairsOf) => pairsOf.map(([place, logit]) => ({ token: texts[place], logit }));
  const document = { run: all.record, ...one, boosted: named(one.boosted), suppressed: named(one.suppressed), contexts: lines };
  download(`latent-${one.latent}.json`, JSON.stringify(document, null, 1));
}

async function showLatent(latent) {
  const view = byId("view");
  let found;
  try {
    found = await latentData(latent);
  } catch (error) {
    view.replaceChildren(make("p", { role: "alert", text: `Latent ${latent} cannot be read: ${error.message}` }));
    return;
  }
  if (latent !== list.chosen) return; // another one was chosen meanwhile
  const { one, texts } = found;
  const parts = [make("h2", { text: `Latent ${latent}` }), toolbar(one, texts), facts(one), contextsOf(one, texts, 0, 0), charts(one)];
  if (all.record.no_logits) parts.push(make("p", { class: "note", id: "no-logits", text: `No output tokens: ${all.record.no_logits}.` }));
  else parts.push(make("div", { class: "columns" }, tokensOf("Boosted tokens", one.boosted, texts), tokensOf("Suppressed tokens", one.suppressed, texts)));
  parts.push(neighbours(one), contextsOf(one, texts, 1, OF_LAYER));
  view.replaceChildren(...parts);
  view.scrollTop = 0;
  document.title = `Latent ${latent} · ${all.record.name}`;
}
