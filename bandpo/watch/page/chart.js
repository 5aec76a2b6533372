// One figure: a metric of several runs over steps, smoothed, with the raw numbers behind.

import { h, number } from "./dom.js";

const HEIGHT = 210;
const SYNC = "curves";
export const HALF_LIVES = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500];

// A colour of the style, as a canvas takes it: variables may be of either theme.
function colour(name, alpha = 1) {
  const probe = document.body.appendChild(h("i", { vars: { color: `var(${name})` } }));
  const [r, g, b] = getComputedStyle(probe).color.match(/[\d.]+/g);
  probe.remove();
  return `rgba(${r}, ${g}, ${b}, ${alpha})`;
}

// The mean of a value and all before it, of which one that is `halfLife` steps older counts half.
// Gaps stay gaps.
export function smoothed(steps, values, halfLife) {
  if (!halfLife) return values;
  let sum = 0, weight = 0, last = null;
  return values.map((value, i) => {
    if (value === null) return null;
    const keep = last === null ? 0 : 0.5 ** ((steps[i] - last) / halfLife);
    last = steps[i];
    sum = keep * sum + value;
    weight = keep * weight + 1;
    return sum / weight;
  });
}

// Columns of uPlot for one run: smoothed, and behind it raw, or the range that points are folded of.
function table(curve, halfLife, log) {
  const fits = (values) => values.map((value) => (log && value !== null && value <= 0 ? null : value));
  const means = smoothed(curve.step ?? curve.x, curve.mean, halfLife);
  return [curve.x, fits(means), fits(curve.low ?? curve.mean), fits(curve.high ?? curve.mean)];
}

export class Chart {
  constructor(metric, title) {
    this.metric = metric;
    this.plot = null;
    this.shape = "";
    this.place = h("div", { class: "plot", role: "img" });
    this.tip = h("div", { class: "tip", hidden: true });
    this.element = h("figure", { class: "chart" },
      h("figcaption", {}, title ? h("b", {}, title) : null, " ", h("code", {}, metric)), this.place);
    this.watcher = new ResizeObserver(() => this.fit());
    this.watcher.observe(this.place);
  }

  fit() {
    const width = this.place.clientWidth;
    if (this.plot && width && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }

  // curves: [{id, name, look, curve}]
  draw(curves, { halfLife, log, axis }) {
    this.names = curves.map((one) => one.name);
    this.looks = curves.map((one) => one.look);
    const tables = curves.map((one) => table(one.curve, halfLife, log));
    const data = tables.length ? uPlot.join(tables) : [[]];
    this.describe(curves);
    const shape = JSON.stringify([curves.map((one) => [one.id, one.look, !!one.curve.low]), halfLife > 0, log, axis]);
    if (this.plot && shape === this.shape) {
      this.plot.setData(data, !this.zoomed());
      return;
    }
    this.shape = shape;
    this.plot?.destroy();
    this.plot = new uPlot(this.options(curves, halfLife, log, axis), data, this.place);
    this.plot.over.append(this.tip);
  }

  zoomed() {
    const { min, max } = this.plot.scales.x;
    const xs = this.plot.data[0];
    return xs.length > 1 && (min > xs[0] || max < xs.at(-1));
  }

  options(curves, halfLife, log, axis) {
    const grid = { stroke: colour("--grid"), width: 1 };
    const side = { stroke: colour("--dim"), grid, ticks: { ...grid, size: 4 }, font: "11px system-ui, sans-serif" };
    const series = curves.flatMap(({ look, curve }) => this.seriesOf(look, curve, halfLife));
    const bands = curves.flatMap(({ look, curve }, i) =>
      curve.low ? [{ series: [3 * i + 3, 3 * i + 2], fill: colour(look.colour, 0.16) }] : []);
    return {
      width: this.place.clientWidth || 320,
      height: HEIGHT,
      legend: { show: false },
      padding: [8, 18, 0, 0],
      cursor: { sync: { key: SYNC }, points: { show: false }, drag: { x: true, y: false } },
      scales: { x: { time: false }, y: { distr: log ? 3 : 1, range: log ? undefined : roomy } },
      axes: [
        { ...side, size: 30, values: (_, at) => at.map(number), space: 60 },
        { ...side, size: 52, values: (_, at) => at.map((v) => (v === null ? "" : number(v))) },
      ],
      series: [{ label: axis }, ...series],
      bands,
      hooks: { setCursor: [(plot) => this.point(plot)] },
    };
  }

  seriesOf(look, curve, halfLife) {
    const stroke = colour(look.colour);
    const points = { show: (plot, i) => plot.data[i].filter((v) => v !== null && v !== undefined).length < 30, size: 5, fill: stroke };
    const raw = { stroke: colour(look.colour, curve.low ? 0 : 0.3), width: 1, points: { show: false }, show: halfLife > 0 || !!curve.low };
    return [{ stroke, width: 1.8, dash: look.dash, points }, raw, { ...raw, show: !!curve.low }];
  }

  // The values at the pointer, the highest first.
  point(plot) {
    const { idx, left, top } = plot.cursor;
    const rows = idx === null || idx === undefined || left < 0 ? [] : this.names
      .map((name, i) => ({ name, look: this.looks[i], value: nearest(plot.data[3 * i + 1], idx) }))
      .filter((row) => row.value !== null)
      .sort((a, b) => b.value - a.value);
    this.tip.hidden = !rows.length;
    if (!rows.length) return;
    this.tip.replaceChildren(
      h("b", {}, `${plot.series[0].label} ${number(plot.data[0][idx])}`),
      ...rows.slice(0, 10).map(({ name, look, value }) => h("span", {},
        h("i", { class: "swatch", vars: { "--own": `var(${look.colour})` } }), h("span", { class: "name" }, name), h("b", {}, number(value)))));
    const width = plot.over.clientWidth;
    this.tip.classList.toggle("left", left > width / 2);
    this.tip.style.setProperty("--x", `${left > width / 2 ? width - left + 12 : left + 12}px`);
    this.tip.style.setProperty("--y", `${Math.min(top, 60)}px`);
  }

  describe(curves) {
    const ends = curves.map(({ name, curve }) => `${name}: ${number(curve.last)}`);
    this.place.setAttribute("aria-label", `${this.metric}, last values: ${ends.join("; ") || "none"}`);
  }

  destroy() {
    this.watcher.disconnect();
    this.plot?.destroy();
  }
}

// The value at an index, or the nearest one of a run whose steps lie elsewhere.
function nearest(values, index) {
  for (let d = 0; d < 200; d++) {
    for (const at of [index - d, index + d]) if (values[at] !== undefined) return values[at];
  }
  return null;
}

// A little room above and below; a flat curve lies in the middle.
function roomy(_, low, high) {
  if (low === null || high === null) return [0, 1];
  const room = 0.06 * (high - low) || Math.abs(high) * 0.1 || 0.1;
  return [low >= 0 && low - room < 0 ? Math.min(low, 0) - (high > low ? 0.02 * (high - low) : 0) : low - room, high + room];
}

// A grid of figures that stay as long as their metric is shown.
export class Charts {
  constructor() {
    this.element = h("div", { class: "charts" });
    this.charts = new Map();
  }

  draw(metrics, titles, curvesOf, options) {
    for (const [metric, chart] of this.charts) {
      if (!metrics.includes(metric)) {
        chart.destroy();
        chart.element.remove();
        this.charts.delete(metric);
      }
    }
    for (const metric of metrics) {
      if (!this.charts.has(metric)) this.charts.set(metric, new Chart(metric, titles(metric)));
    }
    const wanted = metrics.map((metric) => this.charts.get(metric).element);
    if (wanted.some((element, i) => this.element.children[i] !== element)) this.element.replaceChildren(...wanted);
    for (const metric of metrics) this.charts.get(metric).draw(curvesOf(metric), options);
  }

  destroy() {
    for (const chart of this.charts.values()) chart.destroy();
    this.charts.clear();
  }
}
