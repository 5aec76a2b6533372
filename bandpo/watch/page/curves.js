// Curves of the chosen runs.

import { ask } from "./api.js";
import { Charts, HALF_LIVES } from "./chart.js";
import { h, select } from "./dom.js";
import { nameOf } from "./runs.js";
import { go, now } from "./state.js";

export const TITLES = {
  "reward/mean": "reward",
  "policy/entropy": "entropy [nats]",
  "clip/high_frac": "clipped above",
  "clip/low_frac": "clipped below",
  "length/mean": "completion length [tokens]",
  "policy/kl_ref": "KL from the reference [nats]",
  "policy/kl_old": "KL from the old policy [nats]",
  "grad/norm": "gradient norm",
  "length/truncated_frac": "cut off at the limit",
  "mismatch/logprob_abs_mean": "engine against learner",
  "throughput/tokens_per_s": "tokens per second",
};
const FIRST = ["reward/mean", "eval", "policy/entropy", "clip/high_frac", "clip/low_frac", "length/mean", "policy/kl_ref", "grad/norm"];
const AXES = [["step", "step"], ["hours", "hours of training"], ["tokens", "tokens sampled"]];

const evaluations = (names) => names.filter((name) => /^eval\/.*\/mean@\d+$/.test(name));

export function defaults(names) {
  const there = new Set(names);
  const kl = there.has("policy/kl_ref") ? "policy/kl_ref" : "policy/kl_old";
  return FIRST.flatMap((name) => (name === "eval" ? evaluations(names).slice(0, 4) : name === "policy/kl_ref" ? kl : name))
    .filter((name) => there.has(name));
}

export const halfLifeOf = () => Number(now().text("smooth", "5"));

export function titleOf(metric) {
  return TITLES[metric] ?? (/^eval\/.*\/mean@/.test(metric) ? metric.split("/")[1] : null);
}

export class Curves {
  constructor() {
    this.charts = new Charts();
    this.tools = h("div", { class: "tools bar-of-tools" });
    this.picker = h("details", { class: "picker" });
    this.note = h("p", { class: "dim empty" });
    this.element = h("div", {}, this.tools, this.picker, this.note, this.charts.element);
    this.drawn = "";
  }

  metrics(names) {
    return now().has("metric") ? now().all("metric") : defaults(names);
  }

  async update({ chosen, runs, labels, looks }) {
    const axis = now().text("x", "step");
    this.names = (await ask("curves", { run: chosen })).names;
    const metrics = this.metrics(this.names).slice(0, 40);
    const answer = await ask("curves", { run: chosen, metric: metrics, x: axis });
    this.note.textContent = !chosen.length ? "Choose runs to compare." : !this.names.length ? "No step is finished yet." : "";
    const halfLife = halfLifeOf();
    const curvesOf = (metric) => chosen
      .filter((id) => answer.runs[id]?.[metric])
      .map((id) => ({ id, name: nameOf(id, runs, labels), look: looks[id], curve: answer.runs[id][metric] }));
    this.drawTools(axis, halfLife, labels);
    this.drawPicker(metrics);
    this.charts.draw(metrics, titleOf, curvesOf, { halfLife, log: now().text("log") === "1", axis });
  }

  drawTools(axis, halfLife, labels) {
    const keys = Object.keys(Object.values(labels)[0] ?? {});
    const drawn = JSON.stringify([axis, halfLife, keys, now().text("log"), now().text("colour")]);
    if (drawn === this.drawn) return; // a slider must not be replaced under the hand
    this.drawn = drawn;
    if (this.tools.contains(document.activeElement) && document.activeElement.type === "range") {
      this.tools.querySelector("output").textContent = words(halfLife);
      return;
    }
    const place = Math.max(0, HALF_LIVES.indexOf(halfLife));
    const slide = (event) => go({ smooth: String(HALF_LIVES[event.target.value]) });
    this.tools.replaceChildren(
      h("label", { class: "field smoothing", title: "half-life of an exponential moving average" }, "smoothing",
        h("input", { type: "range", name: "smoothing", min: 0, max: HALF_LIVES.length - 1, step: 1, value: place, id: "smoothing", on: { input: slide } }),
        h("output", {}, words(halfLife))),
      select("x", AXES, axis, (x) => go({ x: x === "step" ? "" : x })),
      h("label", { class: "field" }, h("input", { type: "checkbox", name: "log", id: "log", checked: now().text("log") === "1", on: { change: (e) => go({ log: e.target.checked ? "1" : "" }) } }), "log y"),
      keys.length ? select("colour by", [["", "run"], ...keys.map((key) => [key, key])], now().text("colour"), (colour) => go({ colour })) : "",
      h("span", { class: "dim hint" }, "drag to zoom, double-click to return"));
  }

  drawPicker(metrics) {
    const key = JSON.stringify([this.names, metrics]);
    if (key === this.picked) return;
    this.picked = key;
    const wanted = this.picker.querySelector("input[type=search]")?.value ?? "";
    const list = h("div", { class: "metrics" });
    const fill = (word) => list.replaceChildren(...this.names
      .filter((name) => name.includes(word))
      .slice(0, 300)
      .map((name) => h("label", {}, h("input", { type: "checkbox", name: "metric", checked: metrics.includes(name), on: { change: (e) => this.pick(name, e.target.checked) } }), h("code", {}, name))));
    fill(wanted);
    this.picker.replaceChildren(
      h("summary", {}, `Metrics (${metrics.length} of ${this.names.length})`),
      h("div", { class: "tools" },
        h("input", { type: "search", name: "metrics", placeholder: "clip/, eval/, time/ …", "aria-label": "filter metrics", value: wanted, on: { input: (e) => fill(e.target.value) } }),
        h("button", { type: "button", on: { click: () => go({ metric: "" }) } }, "the usual ones")),
      list);
  }

  pick(name, on) {
    const others = this.metrics(this.names).filter((one) => one !== name);
    go({ metric: on ? [...others, name] : others });
  }

  destroy() {
    this.charts.destroy();
  }
}

const words = (halfLife) => (halfLife ? `half-life ${halfLife} step${halfLife > 1 ? "s" : ""}` : "none");
