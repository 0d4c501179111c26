// Bars in SVG. Each is { value, label }; a value that is null leaves a gap.
const SVG = "http://www.w3.org/2000/svg";
function svg(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function bars(title, unit, values, ticks) {
  const width = 300, height = 130, left = 34, bottom = 24, top = 8;
  const shown = values.map((bar) => (bar.value === null ? 0 : bar.value));
  const high = Math.max(0, ...shown), low = Math.min(0, ...shown);
  const scale = (height - top - bottom) / (high - low || 1);
  const step = (width - left) / Math.max(1, values.length);
  const y = (value) => top + (high - value) * scale;
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: ${unit}` });
  drawing.append(svg("line", { class: "axis", x1: left, x2: width, y1: y(0), y2: y(0) }));
  drawing.append(svg("text", { x: left - 4, y: top + 6, "text-anchor": "end" }, number(high)));
  if (low < 0) drawing.append(svg("text", { x: left - 4, y: y(low), "text-anchor": "end" }, number(low)));
  values.forEach((bar, i) => {
    if (bar.value === null) return;
    const tall = Math.max(Math.abs(bar.value) * scale, bar.value ? 1 : 0);
    const box = svg("rect", {
      class: "bar", x: left + i * step + 0.5, width: Math.max(0.5, step - 1),
      y: bar.value >= 0 ? y(0) - tall : y(0), height: tall,
    });
    box.append(svg("title", {}, `${bar.label}: ${number(bar.value)}`));
    drawing.append(box);
  });
  for (const [at, text] of ticks) {
    const x = left + at * step;
    const anchor = at <= 0.6 ? "start" : at >= values.length - 0.6 ? "end" : "middle";
    drawing.append(svg("text", { x, y: height - 8, "text-anchor": anchor }, text));
  }
  return make("figure", {}, make("h3", { text: title }), make("p", { class: "note", text: unit }), drawing);
}

function histogramOf(one) {
  const { first, counts } = one.histogram;
  const edge = (i) => all.edges[first + i];
  const values = counts.map((value, i) => ({ value, label: `${number(edge(i))} to ${number(edge(i + 1))}` }));
  const ticks = counts.length ? [[0, number(edge(0))], [counts.length, number(edge(counts.length))]] : [];
  return bars("Activations", "firings by activation, bins of a quarter octave", values, ticks);
}

function layerBars(title, unit, values, names) {
  const ticks = names.map((name, i) => [i + 0.5, name.split(" ")[0].slice(0, 10)]);
  const every = Math.ceil(ticks.length / 8);
  return bars(title, unit, values.map((value, i) => ({ value, label: names[i] })), ticks.filter((_, i) => i % every === 0));
}

function logitBars(one) {
  const width = (one.logit_high - one.logit_low) / one.logit_histogram.length;
  const values = one.logit_histogram.map((value, i) => ({ value, label: `logit ${number(one.logit_low + i * width)}` }));
  return bars("Logits", "output tokens by logit", values, [[0, number(one.logit_low)], [values.length, number(one.logit_high)]]);
}
