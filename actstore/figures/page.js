// Makes the figures and tables of a page answer: pointer, zoom, legends, sorting, files.
// Text enters the page by textContent only.
'use strict';
(() => {
  const SVG = 'http://www.w3.org/2000/svg';
  const root = document.documentElement;
  const tip = document.getElementById('tip');
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (tag, attributes = {}, text = '') => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return element;
  };
  const makeSvg = (tag, attributes) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const shown = value => {
    if (value === null || Number.isNaN(value)) return '–';
    if (typeof value !== 'number') return value;
    if (Number.isInteger(value)) return value.toLocaleString('en');
    const size = Math.abs(value);
    return size >= 1e5 || size < 1e-3 ? value.toExponential(2) : String(+value.toPrecision(4));
  };

  // Light and dark
  const theme = document.getElementById('theme');
  if (theme) theme.addEventListener('click', () => {
    const isDark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
    root.dataset.theme = isDark ? 'light' : 'dark';
  });

  // Scales: from values to pixels of the plot, and back
  class Scale {
    constructor(text, begin, end) {
      const [kind, low, high] = text.split(' ');
      this.log = kind === 'log';
      this.begin = begin;
      this.end = end;
      this.set(+low, +high);
    }
    set(low, high) { this.low = low; this.high = high; }
    inner(value) { return this.log ? Math.log10(value) : value; }
    place(value) {
      const low = this.inner(this.low);
      return this.begin + (this.inner(value) - low) / (this.inner(this.high) - low) * (this.end - this.begin);
    }
    value(place) {
      const low = this.inner(this.low);
      const inner = low + (place - this.begin) / (this.end - this.begin) * (this.inner(this.high) - low);
      return this.log ? 10 ** inner : inner;
    }
    ticks() {
      if (this.log && this.high / this.low > 20) {
        const ticks = [];
        for (let power = Math.ceil(Math.log10(this.low)); 10 ** power <= this.high; power++) ticks.push(10 ** power);
        if (ticks.length > 1) return ticks;
      }
      const rough = (this.high - this.low) / 6;
      const power = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 5, 10].map(factor => factor * power).sort((a, b) => Math.abs(a - rough) - Math.abs(b - rough))[0];
      const ticks = [];
      for (let i = Math.ceil(this.low / step - 1e-9); i * step <= this.high * (1 + 1e-9); i++) ticks.push(i * step);
      return ticks;
    }
  }

  const numbers = text => text === undefined ? null : text.split(' ').map(word => word === '' ? NaN : +word);

  class Figure {
    constructor(svg) {
      this.svg = svg;
      this.plot = svg.querySelector('svg.plot');
      const [left, top, width, height] = svg.dataset.plot.split(' ').map(Number);
      Object.assign(this, {left, top, width, height});
      this.x = new Scale(svg.dataset.xScale, 0, width);
      this.y = new Scale(svg.dataset.yScale, height, 0);
      this.home = [this.x.low, this.x.high, this.y.low, this.y.high];
      this.series = all('.series', this.plot).map(group => ({
        group, name: group.dataset.name, mark: group.dataset.mark, run: group.dataset.run,
        x: numbers(group.dataset.x), y: numbers(group.dataset.y), low: numbers(group.dataset.low),
        high: numbers(group.dataset.high), labels: (group.dataset.labels || '').split('\n'),
      }));
      this.zooms = svg.dataset.xNames === '0' && this.series.every(series => series.mark !== 'bars');
      this.labels = all('.label', svg).map(label => label.textContent.replace(' (log)', ''));
      this.at = -1;
      svg.setAttribute('tabindex', '0');
      svg.setAttribute('role', 'group');  // an image may hold nothing that answers
      this.plot.addEventListener('pointermove', event => this.hover(event));
      this.plot.addEventListener('pointerleave', () => this.leave());
      this.plot.addEventListener('pointerdown', event => this.press(event));
      this.plot.addEventListener('dblclick', () => this.reset());
      svg.addEventListener('keydown', event => this.key(event));
      svg.addEventListener('blur', () => this.leave());
      all('.entry[data-entry]', svg).forEach(entry => this.legend(entry));
    }
    // Where the pointer is, in the figure's pixels
    where(event) {
      const box = this.svg.getBoundingClientRect();
      const factor = this.svg.viewBox.baseVal.width / box.width;
      return [(event.clientX - box.left) * factor - this.left, (event.clientY - box.top) * factor - this.top];
    }
    points() {
      const points = [];
      for (const series of this.series) {
        if (series.group.classList.contains('gone')) continue;
        const bars = series.mark === 'bars';
        for (let i = 0; i < series.x.length; i++) {
          const px = this.x.place(series.x[i]);
          const py = this.y.place(series.y[i]);
          if (Number.isFinite(px) && Number.isFinite(py) && px >= -1 && px <= this.width + 1) points.push({series, i, px, py, bars});
        }
      }
      return points;
    }
    hover(event) {
      if (this.pressed) return this.drag(event);
      const [x, y] = this.where(event);
      let best = null;
      let least = 40 ** 2;
      for (const point of this.points()) {
        const dy = point.bars && y > point.py ? 0 : point.py - y;
        const distance = (point.px - x) ** 2 + dy ** 2;
        if (distance < least) { least = distance; best = point; }
      }
      if (best) this.show(best); else this.leave();
    }
    show(point) {
      const {series, i} = point;
      const names = this.svg.dataset.xNames !== '0' ? all('.x.tick, .slanted', this.svg).map(tick => tick.textContent) : null;
      const xText = names && names.length === +this.svg.dataset.xNames ? names[Math.round(series.x[i])] : shown(series.x[i]);
      let text = series.name ? series.name + '\n' : '';
      if (series.labels[i]) text += series.labels[i] + '\n';
      text += `${this.labels[0]}: ${xText}\n${this.labels[1]}: ${shown(series.y[i])}`;
      if (series.low) text += ` (${shown(series.low[i])} to ${shown(series.high[i])})`;
      tip.textContent = text;
      tip.hidden = false;
      const box = this.svg.getBoundingClientRect();
      const factor = box.width / this.svg.viewBox.baseVal.width;
      const x = box.left + (point.px + this.left) * factor;
      const y = box.top + (point.py + this.top) * factor;
      tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - tip.offsetWidth - 4)) + 'px';
      tip.style.top = Math.max(4, Math.min(y + 14, innerHeight - tip.offsetHeight - 4)) + 'px';
      if (!this.spot) this.spot = this.plot.appendChild(makeSvg('circle', {class: 'spot', r: 6}));
      this.spot.setAttribute('cx', point.px);
      this.spot.setAttribute('cy', point.py);
      const many = this.series.filter(other => other.mark !== 'band').length > 1;
      for (const other of this.series) other.group.classList.toggle('faint', many && other.group !== series.group && other.name !== series.name);
    }
    leave() {
      tip.hidden = true;
      if (this.spot) { this.spot.remove(); this.spot = null; }
      for (const series of this.series) series.group.classList.remove('faint');
    }
    press(event) {
      if (!this.zooms || event.button !== 0 || event.pointerType === 'touch') return;
      this.pressed = this.where(event);
      this.choice = this.plot.appendChild(makeSvg('rect', {class: 'choice'}));
      const end = up => {
        this.plot.removeEventListener('pointerup', end);
        const [x0, y0] = this.pressed;
        const [x1, y1] = this.where(up);
        this.pressed = null;
        this.choice.remove();
        if (Math.abs(x1 - x0) < 6 || Math.abs(y1 - y0) < 6) return;
        const xs = [x0, x1].map(x => this.x.value(x)).sort((a, b) => a - b);
        const ys = [y0, y1].map(y => this.y.value(y)).sort((a, b) => a - b);
        this.zoom(...xs, ...ys);
      };
      this.plot.setPointerCapture(event.pointerId);
      this.plot.addEventListener('pointerup', end);
    }
    drag(event) {
      const [x0, y0] = this.pressed;
      const [x1, y1] = this.where(event);
      const box = {x: Math.min(x0, x1), y: Math.min(y0, y1), width: Math.abs(x1 - x0), height: Math.abs(y1 - y0)};
      for (const [name, value] of Object.entries(box)) this.choice.setAttribute(name, value);
    }
    zoom(xLow, xHigh, yLow, yHigh) {
      this.x.set(xLow, xHigh);
      this.y.set(yLow, yHigh);
      this.redraw();
    }
    reset() { this.zoom(...this.home); }
    scaled(factor) {
      const half = (scale, middle) => [scale.value(middle - (middle - scale.begin) * factor), scale.value(middle + (scale.end - middle) * factor)];
      this.zoom(...half(this.x, this.width / 2), ...half(this.y, this.height / 2));
    }
    key(event) {
      if (event.target !== this.svg || event.ctrlKey || event.metaKey || event.altKey) return;
      const points = this.points();
      if (event.key === 'ArrowRight' || event.key === 'ArrowLeft') {
        if (!points.length) return;
        this.at = (this.at + (event.key === 'ArrowRight' ? 1 : -1) + points.length) % points.length;
        this.show(points[this.at]);
      } else if (event.key === '+' && this.zooms) this.scaled(0.5);
      else if (event.key === '-' && this.zooms) this.scaled(2);
      else if (event.key === '0' && this.zooms) this.reset();
      else if (event.key === 'Escape') this.leave();
      else return;
      event.preventDefault();
    }
    redraw() {
      const dot = (x, y) => `${x.toFixed(1)} ${y.toFixed(1)}`;
      for (const series of this.series) {
        const xs = series.x.map(value => this.x.place(value));
        const ys = series.y.map(value => this.y.place(value));
        const low = series.low && series.low.map(value => this.y.place(value));
        const high = series.high && series.high.map(value => this.y.place(value));
        const there = xs.map((x, i) => Number.isFinite(x) && Number.isFinite(ys[i]));
        const draw = {
          line: () => xs.map((x, i) => !there[i] ? '' : (i && there[i - 1] ? 'L' : 'M') + dot(x, ys[i])).join(''),
          dots: () => xs.map((x, i) => there[i] ? `M${dot(x, ys[i])}h0` : '').join(''),
          error: () => xs.map((x, i) => there[i] && Number.isFinite(low[i]) ? `M${dot(x, low[i])}V${high[i].toFixed(1)}` : '').join(''),
          area: () => 'M' + [...xs.map((x, i) => dot(x, high[i])), ...xs.map((x, i) => dot(x, low[i])).reverse()].filter(text => !text.includes('NaN')).join('L') + 'Z',
        };
        for (const path of series.group.children) path.setAttribute('d', draw[path.classList[0]]());
      }
      for (const rule of all('.rule', this.plot)) {
        const place = rule.dataset.yAt !== undefined ? this.y.place(+rule.dataset.yAt) : this.x.place(+rule.dataset.xAt);
        rule.firstChild.setAttribute('d', rule.dataset.yAt !== undefined ? `M0 ${place}H${this.width}` : `M${place} 0V${this.height}`);
        if (rule.dataset.yAt !== undefined) rule.lastChild.setAttribute('y', place - 4);
        else rule.lastChild.setAttribute('transform', `translate(${place - 4} ${this.height - 4}) rotate(-90)`);
      }
      const axes = this.svg.querySelector('.axes');
      axes.replaceChildren();
      for (const tick of this.y.ticks()) {
        const y = this.top + this.y.place(tick);
        axes.append(makeSvg('path', {class: 'grid', d: `M${this.left} ${y}h${this.width}`}));
        axes.append(makeSvg('text', {class: 'y tick', x: this.left - 6, y: y + 4}));
        axes.lastChild.textContent = shown(+tick.toPrecision(12));
      }
      for (const tick of this.x.ticks()) {
        const x = this.left + this.x.place(tick);
        axes.append(makeSvg('path', {class: 'grid', d: `M${x} ${this.top}v${this.height}`}));
        axes.append(makeSvg('text', {class: 'x tick', x, y: this.top + this.height + 15}));
        axes.lastChild.textContent = shown(+tick.toPrecision(12));
      }
      this.leave();
    }
    legend(entry) {
      entry.setAttribute('role', 'button');
      entry.setAttribute('tabindex', '0');
      entry.setAttribute('aria-pressed', 'true');
      const toggle = () => {
        const off = entry.classList.toggle('off');
        entry.setAttribute('aria-pressed', String(!off));
        for (const series of this.series) if (series.name === entry.dataset.entry) series.group.classList.toggle('gone', off);
      };
      entry.addEventListener('click', toggle);
      entry.addEventListener('keydown', event => {
        if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); toggle(); }
      });
    }
  }
  const figures = all('svg.figure[data-plot]').map(svg => new Figure(svg));

  // The legend that all figures of runs share
  const holder = document.getElementById('legend-data');
  const legend = document.getElementById('legend');
  const COLOURS = 8, SHADES = 11;
  if (holder && legend) {
    const {runs, fields, chosen} = JSON.parse(holder.textContent);
    const groups = all('.series[data-run]');
    const hidden = new Set();
    const choose = make('select', {'aria-label': 'colour runs by'});
    for (const field of fields) choose.append(make('option', {value: field.key}, field.label));
    choose.value = chosen;
    const entries = make('span', {class: 'entries'});
    const layers = [...new Set(all('.series[data-layer]').map(group => group.dataset.layer))];
    const chooseLayer = make('select', {'aria-label': 'layer shown'});
    for (const [value, text] of [['', 'all layers'], ...layers.map(layer => [layer, layer])]) chooseLayer.append(make('option', {value}, text));
    const paint = () => {
      const field = fields.find(one => one.key === choose.value);
      const values = [...new Set(runs.map(run => run[field.key]))];
      if (field.ordered) values.sort((a, b) => typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b), 'en', {numeric: true}));
      const ramp = field.ordered && values.length > 2 || values.length > COLOURS;
      const kinds = new Map(values.map((value, i) => [value, ramp ? 'r' + Math.round(i / Math.max(values.length - 1, 1) * (SHADES - 1)) : 'c' + i % COLOURS]));
      const show = () => groups.forEach(group => {
        const otherLayer = chooseLayer.value && 'layer' in group.dataset && group.dataset.layer !== chooseLayer.value;
        group.classList.toggle('gone', Boolean(otherLayer) || hidden.has(runs[+group.dataset.run][field.key]));
      });
      chooseLayer.onchange = show;
      groups.forEach(group => {
        group.classList.remove(...[...group.classList].filter(name => /^[cr]\d+$/.test(name)));
        group.classList.add(kinds.get(runs[+group.dataset.run][field.key]));
      });
      hidden.clear();
      show();
      entries.replaceChildren(...values.map(value => {
        const entry = make('button', {type: 'button', class: `entry ${kinds.get(value)}`, 'aria-pressed': 'true'});
        entry.append(make('i'), document.createTextNode(value === null ? '–' : String(value)));
        entry.addEventListener('click', event => {
          // With the shift key all others go instead.
          if (event.shiftKey) values.forEach(other => other === value ? hidden.delete(other) : hidden.add(other));
          else if (!hidden.delete(value)) hidden.add(value);
          [...entries.children].forEach((other, i) => {
            other.classList.toggle('off', hidden.has(values[i]));
            other.setAttribute('aria-pressed', String(!hidden.has(values[i])));
          });
          show();
        });
        return entry;
      }));
    };
    choose.addEventListener('change', paint);
    const label = make('label', {}, 'Colour by ');
    label.append(choose);
    if (runs.length > 1) legend.append(label, entries);
    if (layers.length > 1) legend.append(chooseLayer);
    legend.classList.add('figure');
    legend.hidden = groups.length === 0 || runs.length < 2 && layers.length < 2;
    paint();
  }

  // Tables
  const compare = (a, b) => typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b), 'en', {numeric: true});
  const sortable = (table, values) => {
    const heads = all('thead th', table);
    const body = table.tBodies[0];
    heads.forEach((head, column) => head.querySelector('button').addEventListener('click', () => {
      const falls = head.getAttribute('aria-sort') === 'ascending';
      heads.forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', falls ? 'descending' : 'ascending');
      const missing = value => value === null || Number.isNaN(value);
      const rows = [...body.rows].map(row => [row, values(row, column)]);
      // What has no value stays last in both directions.
      rows.sort(([, a], [, b]) => missing(a) - missing(b) || (falls ? -1 : 1) * compare(a, b));
      body.append(...rows.map(([row]) => row));
    }));
  };
  const numberIn = cell => {
    if (cell.dataset.value !== undefined) return cell.dataset.value === '' ? null : +cell.dataset.value;
    return cell.textContent;
  };
  all('table.sortable').forEach(table => sortable(table, (row, column) => numberIn(row.cells[column])));

  const tableOf = id => {
    const table = JSON.parse(document.getElementById(id).textContent);
    for (const column of table.columns) if (column.names) column.values = column.values.map(place => column.names[place]);
    return table;
  };
  const fill = details => {
    const {columns} = tableOf(details.dataset.table);
    const table = make('table', {class: 'sortable'});
    const head = table.createTHead().insertRow();
    for (const column of columns) {
      const cell = make('th', {scope: 'col', class: column.type === 'text' ? 'text' : ''});
      cell.append(make('button', {type: 'button'}, (column.label || column.name.replaceAll('_', ' ')) + (column.unit ? ` (${column.unit})` : '')));
      head.append(cell);
    }
    const body = table.createTBody();
    const n = columns.length ? columns[0].values.length : 0;
    const MOST = 2000;
    for (let i = 0; i < Math.min(n, MOST); i++) {
      const row = body.insertRow();
      for (const column of columns) {
        const value = column.values[i];
        const cell = row.insertCell();
        cell.textContent = shown(value);
        if (column.type === 'text') { cell.className = 'text'; cell.title = value; }
        else cell.dataset.value = value === null ? '' : value;
      }
    }
    const box = make('div', {class: 'box', tabindex: '0', role: 'region', 'aria-label': 'data'});
    box.append(table);
    details.append(box);
    if (n > MOST) details.append(make('p', {}, `The first ${MOST} of ${n} rows; the CSV file has all.`));
    const button = make('button', {type: 'button'}, 'CSV');
    button.addEventListener('click', () => saveCsv(details.dataset.table));
    details.append(button);
    sortable(table, (row, column) => numberIn(row.cells[column]));
  };
  all('details.data').forEach(details => details.addEventListener('toggle', () => {
    if (details.open && details.childElementCount === 1) fill(details);
  }));

  // Files
  const save = (name, type, text) => {
    const link = make('a', {download: name, href: URL.createObjectURL(new Blob([text], {type}))});
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const csvText = value => {
    if (value === null) return '';
    const text = String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const saveCsv = id => {
    const {name, columns} = tableOf(id);
    const lines = [columns.map(column => csvText(column.name)).join(',')];
    const n = columns.length ? columns[0].values.length : 0;
    for (let i = 0; i < n; i++) lines.push(columns.map(column => csvText(column.values[i])).join(','));
    save(`${name}.csv`, 'text/csv', lines.join('\n') + '\n');
  };
  const sheet = (document.querySelector('style')?.textContent ?? '').split('\n').filter(line => line.trim().startsWith('.figure') || line.includes(':root') && line.includes('.figure') || line.startsWith('  --')).join('\n');
  const saveSvg = svg => {
    const copy = svg.cloneNode(true);
    const box = {width: svg.viewBox.baseVal.width, height: svg.viewBox.baseVal.height};
    all('.gone, .spot, .choice, .field', copy).forEach(element => element.remove());
    // What the page's legend says stands below the figure in its file.
    const shownKinds = new Set(all('.series[data-run]', copy).flatMap(group => [...group.classList].filter(name => /^[cr]\d+$/.test(name))));
    const entries = legend ? all('button.entry:not(.off)', legend).filter(entry => [...entry.classList].some(name => shownKinds.has(name))) : [];
    let x = 8;
    for (const entry of shownKinds.size ? entries : []) {
      const width = 24 + 6.3 * entry.textContent.length;
      if (x === 8 || x + width > box.width) { x = 8; box.height += 16; }
      const group = makeSvg('g', {class: entry.className});
      group.append(makeSvg('circle', {cx: x + 6, cy: box.height - 8, r: 4.5}), makeSvg('text', {x: x + 15, y: box.height - 4}));
      group.lastChild.textContent = entry.textContent;
      copy.append(group);
      x += width;
    }
    copy.setAttribute('viewBox', `0 0 ${box.width} ${box.height}`);
    copy.setAttribute('width', box.width);
    copy.setAttribute('height', box.height);
    const style = makeSvg('style', {});
    style.textContent = sheet;
    copy.prepend(style, makeSvg('rect', {class: 'paper', width: box.width, height: box.height}));
    save(`${svg.dataset.name}.svg`, 'image/svg+xml', new XMLSerializer().serializeToString(copy));
  };
  all('button.svg').forEach(button => button.addEventListener('click', () => saveSvg(button.closest('figure').querySelector('svg.figure'))));
  all('button.csv').forEach(button => button.addEventListener('click', () => saveCsv(button.dataset.table)));
  addEventListener('beforeprint', () => all('details.data').forEach(details => { if (details.open && details.childElementCount === 1) fill(details); }));
})();
