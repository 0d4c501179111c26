// Draws the curves of runs with uPlot, and adds what comes: by the run's events where the
// page is of one run, and otherwise, or where events fail, by asking again.
'use strict';
(() => {
  const HEIGHT = 150;
  const ASK_MS = 3000;
  const COLOURS = 8;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const short = value => {
    for (const [size, letter] of [[1e9, 'B'], [1e6, 'M'], [1e3, 'k']]) if (Math.abs(value) >= size) return +(value / size).toPrecision(3) + letter;
    return String(+value.toPrecision(3));
  };
  const shown = value => value === null || value === undefined ? '–' : Math.abs(value) >= 1e4 ? short(value) : String(+value.toPrecision(4));

  // The curves of one run so far
  class Run {
    constructor(id) { this.id = id; this.last = -1; this.rows = []; this.columns = {}; this.name = ''; this.state = ''; }
    add(came) {
      Object.assign(this, {name: came.name, state: came.state});
      if (came.whole) { this.rows = []; this.columns = {}; }
      this.rows.push(...came.rows);
      for (const [name, values] of Object.entries(came.columns)) (this.columns[name] ??= []).push(...values);
      this.last = came.last_step;
      return came.whole || came.rows.length > 0;
    }
  }

  class Charts {
    constructor(section) {
      this.section = section;
      this.figures = all('figure.chart', section);
      this.plots = new Map();
      this.runs = [];
      this.choose();
      this.ask();
      if (section.dataset.events) this.listen();
      this.timer = setInterval(() => this.tick(), ASK_MS);
      new ResizeObserver(() => this.fit()).observe(section);
      matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.draw(true));
      document.addEventListener('visibilitychange', () => this.seen());
    }
    // The runs that the server names now; curves of those that stay are kept.
    choose() {
      const ids = (this.section.dataset.runs ?? '').split(' ').filter(Boolean);
      if (ids.join() === this.runs.map(run => run.id).join()) return;
      this.runs = ids.map(id => this.runs.find(run => run.id === id) ?? new Run(id));
      this.renew = true;
    }
    get ended() { return this.runs.every(run => !['', 'queued', 'running'].includes(run.state)); }
    tick() {
      if (!this.section.isConnected) { clearInterval(this.timer); this.source?.close(); return; }
      // What came last may be in the journal a moment after its event.
      const wasHeard = this.heard && Date.now() - this.heard < 3 * ASK_MS;
      if (document.hidden || this.section.dataset.events && this.ended && !wasHeard) return;
      this.ask();
    }
    async ask() {
      this.choose();
      if (this.asking || !this.runs.length) return;
      this.asking = true;
      try {
        const query = new URLSearchParams();
        for (const run of this.runs) { query.append('run', run.id); query.append('after', run.last); }
        const answer = await fetch(`${this.section.dataset.charts}?${query}`, {headers: {Accept: 'application/json'}});
        if (!answer.ok) return;
        const came = await answer.json();
        const changed = came.map(one => this.runs.find(run => run.id === one.run)?.add(one)).some(Boolean);
        if (changed || this.renew) this.draw(this.renew);
        this.renew = false;
      } catch { /* the next time */ } finally { this.asking = false; }
    }
    // The browser asks again by itself, with the id of the last event that it got.
    listen() {
      this.source = new EventSource(this.section.dataset.events);
      let waits = 0;
      const came = () => {
        this.heard = Date.now();
        clearTimeout(waits);
        waits = setTimeout(() => { this.ask(); this.nudge(); }, 150);
      };
      this.source.onmessage = came;
      for (const kind of ['queued', 'started', 'progress', 'completed', 'failed', 'cancelled', 'lost']) this.source.addEventListener(kind, came);
      this.source.onerror = () => { this.heard = 0; };
    }
    nudge() { for (const id of ['now', 'more']) document.getElementById(id)?.dispatchEvent(new Event('nudge')); }
    // A connection is not held by a page that nobody sees: a browser has six.
    seen() {
      if (!this.section.dataset.events) return;
      if (document.hidden) { this.source?.close(); this.source = null; this.heard = 0; } else if (!this.source) { this.listen(); this.ask(); this.nudge(); }
    }
    fit() {
      for (const [figure, plot] of this.plots) {
        const width = this.width(figure);
        if (Math.abs(plot.width - width) > 2) plot.setSize({width, height: HEIGHT});
      }
    }
    width(figure) {
      const style = getComputedStyle(figure);
      return Math.max(120, Math.floor(figure.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight)));
    }
    draw(anew) {
      for (const figure of this.figures) this.drawOne(figure, anew);
    }
    drawOne(figure, anew) {
      const column = figure.dataset.column;
      const begun = this.runs.filter(run => run.rows.length);
      const tables = begun.map(run => [run.rows, run.columns[column] ?? []]);
      this.caption(figure, begun, column);
      if (!tables.length) return;
      const data = tables.length === 1 ? tables[0] : uPlot.join(tables);
      const plot = this.plots.get(figure);
      if (plot && !anew && plot.series.length === data.length) { plot.setData(data); return; }
      plot?.destroy();
      figure.querySelector('.uplot')?.remove();
      this.plots.set(figure, this.made(figure, begun, data));
      figure.append(figure.querySelector('ul') ?? '');
    }
    made(figure, begun, data) {
      const style = getComputedStyle(figure);
      const colour = name => style.getPropertyValue(name).trim();
      const axis = {stroke: colour('--dim'), grid: {stroke: colour('--grid'), width: 1}, ticks: {show: false}, font: '11px system-ui, sans-serif'};
      const series = begun.map(run => ({label: run.name, stroke: colour(`--c${this.runs.indexOf(run) % COLOURS}`), width: 1.6, spanGaps: true, points: {show: run.rows.length < 3, size: 5}}));
      return new uPlot({
        width: this.width(figure), height: HEIGHT, padding: [8, 10, 0, 0], legend: {show: false}, cursor: {y: false, drag: {x: true, y: false}},
        scales: {x: {time: false}, y: {range: (plot, low, high) => low === null ? [0, 1] : low >= 0 && low < .5 * high ? [0, high * 1.05] : [low - .05 * (high - low || 1), high + .05 * (high - low || 1)]}},
        axes: [{...axis, size: 26, values: (plot, ticks) => ticks.map(short)}, {...axis, size: 48, values: (plot, ticks) => ticks.map(short)}],
        series: [{label: 'rows'}, ...series],
        hooks: {setCursor: [plot => this.point(figure, plot)]},
      }, data, figure);
    }
    // The last values, or those at the pointer; with several runs, their names.
    caption(figure, begun, column) {
      let head = figure.querySelector('figcaption');
      if (!head) {
        head = document.createElement('figcaption');
        head.append(document.createElement('b'), document.createElement('span'));
        head.firstChild.textContent = figure.dataset.label;
        figure.prepend(head);
        figure.setAttribute('role', 'img');
      }
      const last = begun.map(run => `${begun.length > 1 ? run.name + ' ' : ''}${shown(run.columns[column]?.at(-1))}`);
      const text = begun.length ? last.join(', ') : 'no steps yet';
      head.lastChild.textContent = begun.length > 1 ? '' : text;
      figure.setAttribute('aria-label', `${figure.dataset.label} over rows of training; now ${text}`);
      if (begun.length < 2) { figure.querySelector('ul')?.remove(); return; }
      const list = figure.querySelector('ul') ?? figure.appendChild(document.createElement('ul'));
      list.replaceChildren(...begun.map((run, place) => {
        const item = document.createElement('li');
        item.className = `c${this.runs.indexOf(run) % COLOURS}`;
        item.textContent = last[place];
        return item;
      }));
    }
    point(figure, plot) {
      const head = figure.querySelector('figcaption');
      const at = plot.cursor.idx;
      if (!head || at === null || at === undefined) { if (head?.dataset.pointed) { delete head.dataset.pointed; this.caption(figure, this.runs.filter(run => run.rows.length), figure.dataset.column); } return; }
      head.dataset.pointed = 'yes';
      head.lastChild.textContent = `${short(plot.data[0][at])} rows: ${plot.data.slice(1).map(values => shown(values[at])).join(', ')}`;
    }
  }

  const started = new WeakSet();
  function start() {
    for (const section of all('[data-charts]')) {
      if (started.has(section)) continue;
      started.add(section);
      new Charts(section);
    }
  }
  document.addEventListener('page:changed', start);
  start();
})();
