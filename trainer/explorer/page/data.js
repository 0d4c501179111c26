// The index of all latents, and chunks with some latents each: from the page itself,
// or, where it is served, from the server that it came from.
const served = document.body.dataset.served === "yes";
const MOST_CHUNKS = 24;
const chunks = new Map();
let all = null; // the index

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

async function unpacked(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// The chunks come after this script, and may not have been read yet.
async function elementOf(id) {
  if (!byId(id) && document.readyState === "loading") {
    await new Promise((done) => document.addEventListener("DOMContentLoaded", done, { once: true }));
  }
  return byId(id);
}

async function packed(id) {
  if (!served) return bytesOf((await elementOf(id)).textContent);
  const answer = await fetch(id.replace("-", "/"));
  if (!answer.ok) throw new Error(`${id}: ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function readIndex() {
  const found = await unpacked(await packed("index"));
  for (const name of Object.keys(found.columns)) {
    found.columns[name] = new Float32Array(bytesOf(found.columns[name]).buffer);
  }
  found.shares = bytesOf(found.shares);
  found.text = new Uint32Array(bytesOf(found.text).buffer);
  found.m = found.record.n_latents;
  found.slugs = found.layers.map((layer) => layer.replace(/[\s/]+/g, "-"));
  all = found;
}

function chunk(number) {
  let promise = chunks.get(number);
  chunks.delete(number);
  if (!promise) {
    promise = packed(`chunk-${number}`).then(unpacked);
    promise.catch(() => chunks.delete(number));
  }
  // The one that was used longest ago is the first.
  chunks.set(number, promise);
  if (chunks.size > MOST_CHUNKS) chunks.delete(chunks.keys().next().value);
  return promise;
}

async function latentData(latent) {
  const size = all.record.row_group;
  const found = await chunk(Math.floor(latent / size));
  return { one: found.latents[latent % size], texts: found.texts };
}

function tokenOf(latent) {
  return all.texts[all.text[latent]];
}
