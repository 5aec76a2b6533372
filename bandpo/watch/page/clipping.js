// How often tokens are clipped, by the probability that the old policy gave them.

import { ask } from "./api.js";
import { Charts } from "./chart.js";
import { halfLifeOf } from "./curves.js";
import { h, number, percent, select } from "./dom.js";
import { nameOf } from "./runs.js";
import { go, now } from "./state.js";

const MEASURES = [
  ["high_frac", "clipped above"],
  ["low_frac", "clipped below"],
  ["dual_frac", "dual clip"],
  ["mass_removed_frac", "share of the advantage removed"],
];
const WINDOWS = [["", "all steps"], ["10", "last 10 steps"], ["50", "last 50 steps"], ["200", "last 200 steps"]];
const REACH = ["reach/rare_frac", "reach/above_high_frac", "reach/above_canonical_frac", "reach/above_band_frac"];
const TITLES = {
  "reach/rare_frac": "rare tokens with positive advantage",
  "reach/above_high_frac": "of those, beyond the method's bound",
  "reach/above_canonical_frac": "of those, beyond 1.2",
  "reach/above_band_frac": "of those, beyond Band-KL's bound",
};

export class Clipping {
  constructor() {
    this.tools = h("div", { class: "tools bar-of-tools" });
    this.table = h("div", { class: "wide" });
    this.charts = new Charts();
    this.element = h("div", {}, this.tools, this.table,
      h("p", { class: "dim" }, "Share of tokens whose gradient a bound removed, by the old policy's probability of the token; small: tokens in the bin."),
      h("h2", {}, "Over the steps"), this.charts.element);
  }

  async update({ chosen, runs, labels, looks }) {
    const measure = now().text("measure", "high_frac");
    const last = now().text("last");
    const rates = await ask("clipping", { run: chosen, measure, last });
    const bins = binsOf(rates);
    const metrics = [...bins.map(([low, high]) => `clip/bin_${low}_${high}/${measure}`), ...REACH];
    const answer = await ask("curves", { run: chosen, metric: metrics });
    this.drawTools(measure, last);
    const names = Object.fromEntries(chosen.map((id) => [id, nameOf(id, runs, labels)]));
    this.table.replaceChildren(bins.length ? tableOf(rates, bins, names, looks) : h("p", { class: "dim empty" }, "No step of the chosen runs has counted clipped tokens yet."));
    const there = metrics.filter((metric) => answer.names.includes(metric));
    const titles = (metric) => TITLES[metric] ?? spanOf(...metric.split("/")[1].split("_").slice(1));
    const curvesOf = (metric) => chosen
      .filter((id) => answer.runs[id]?.[metric])
      .map((id) => ({ id, name: names[id], look: looks[id], curve: answer.runs[id][metric] }));
    this.charts.draw(there, titles, curvesOf, { halfLife: halfLifeOf(), log: false, axis: "step" });
  }

  drawTools(measure, last) {
    if (this.tools.contains(document.activeElement)) return;
    this.tools.replaceChildren(
      select("tokens", MEASURES, measure, (value) => go({ measure: value })),
      select("over", WINDOWS, last, (value) => go({ last: value })));
  }

  destroy() {
    this.charts.destroy();
  }
}

function binsOf(rates) {
  const found = new Map();
  for (const bins of Object.values(rates)) for (const bin of bins) found.set(bin.from, [bin.from, bin.to]);
  return [...found.values()].sort((a, b) => Number(a[0]) - Number(b[0]));
}

function spanOf(low, high) {
  return Number(low) === 0 ? `p < ${short(high)}` : `p ${short(low)} – ${short(high)}`;
}

// 0.0001 as 1e-4, which takes less room in a head.
const short = (text) => (Number(text) > 0 && Number(text) < 0.01 ? Number(text).toExponential() : text);

function tableOf(rates, bins, names, looks) {
  const every = Object.values(rates).flat().map((bin) => bin.rate ?? 0);
  const most = Math.max(...every, 1e-9);
  const cell = (bin) => {
    if (!bin) return h("td", {}, "–");
    // The square root keeps small rates apart from none.
    const heat = bin.rate ? Math.sqrt(bin.rate / most) : 0;
    return h("td", { class: "heat-cell", vars: { "--heat": `${Math.round(45 * heat)}%` } }, percent(bin.rate, 2), h("small", {}, number(bin.tokens)));
  };
  return h("table", { class: "bins" },
    h("thead", {}, h("tr", {}, h("th", {}, "old probability"), bins.map(([low, high]) => h("th", {}, spanOf(low, high).replace("p ", ""))))),
    h("tbody", {}, Object.entries(rates).map(([id, own]) => h("tr", {},
      h("td", {}, h("span", { class: "swatch", vars: { "--own": `var(${looks[id].colour})` } }), names[id]),
      bins.map(([low]) => cell(own.find((bin) => bin.from === low)))))));
}
