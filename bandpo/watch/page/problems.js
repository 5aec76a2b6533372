// Problems by pass rate, with how it went.

import { ask } from "./api.js";
import { h, number, pager, percent, select } from "./dom.js";
import { OneRun, runSelect } from "./one_run.js";
import { go, now } from "./state.js";

const SORTS = [["hardest", "lowest pass rate"], ["easiest", "highest pass rate"], ["lost", "lost most"], ["gained", "gained most"], ["latest", "drawn last"]];
const SVG = "http://www.w3.org/2000/svg";

export class Problems extends OneRun {
  async draw(context, run) {
    const sources = await ask("sources", { run });
    const ofs = ["train", ...new Set(sources.filter((one) => one.of !== "train").map((one) => one.of))];
    const of = ofs.includes(now().text("of")) ? now().text("of") : "train";
    this.drawTools(context, run, ofs, of);
    const state = now();
    let answer;
    try {
      answer = await ask("problems", { run, of, sort: state.text("sort", "hardest"), query: state.text("query"), page: state.text("page", "0") });
    } catch (error) {
      if (error.status !== 404) throw error;
      const what = of === "train" ? "problems.jsonl comes with the first checkpoint." : "no evaluation is finished.";
      return this.nothing(`Nothing is known of the problems yet: ${what}`);
    }
    if (answer === this.shown) return;
    this.shown = answer;
    this.body.replaceChildren(
      histogram(answer),
      h("div", { class: "wide" }, tableOf(answer, of, context, run)),
      pager(answer, (page) => go({ page: page || "" })) ?? "");
  }

  drawTools(context, run, ofs, of) {
    const key = JSON.stringify([context.chosen, run, ofs, of]);
    if (key === this.drawn) return;
    this.drawn = key;
    const search = (event) => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => go({ query: event.target.value, page: "" }), 250);
    };
    this.tools.replaceChildren(
      runSelect(context, run),
      select("of", ofs.map((one) => [one, one === "train" ? "training" : `evaluation ${one}`]), of, (one) => go({ of: one, page: "" })),
      select("sort", SORTS, now().text("sort", "hardest"), (sort) => go({ sort, page: "" })),
      h("input", { type: "search", name: "query", placeholder: "id or answer", "aria-label": "search problems", value: now().text("query"), on: { input: search } }));
  }
}

function histogram({ histogram, total, never, always }) {
  const most = Math.max(...histogram, 1);
  return h("figure", { class: "tenths" },
    h("figcaption", {}, `${number(total)} problems: ${percent(never / total)} never right, ${percent(always / total)} always right in the last group`),
    h("div", { class: "columns", role: "img", "aria-label": `problems by tenth of pass rate: ${histogram.join(", ")}` },
      histogram.map((count, i) => h("span", { class: "column", vars: { "--share": String(count / most) }, title: `${i * 10}–${i * 10 + 10}%: ${count}` },
        h("i", {}), h("small", {}, `${i * 10}%`)))));
}

function tableOf(answer, of, { chosen }, run) {
  const trained = of === "train";
  const head = ["problem", "pass rate", trained ? "groups so far" : "evaluations so far", "change", "samples", "last step", trained ? "state" : "answer"];
  const link = (problem) => now().with({ view: "samples", run: chosen, one: run, of, problem: problem.id, step: trained ? "" : problem.step, page: "", query: "", verdict: "", score: "", line: "" });
  return h("table", { class: "problems" },
    h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, answer.problems.map((problem) => h("tr", {},
      h("td", { class: "id" }, h("a", { href: link(problem), title: "its samples" }, problem.id)),
      h("td", {}, h("span", { class: "rate", vars: { "--share": String(problem.rate) } }, percent(problem.rate, 0))),
      h("td", {}, sparkline(problem.rates)),
      h("td", { class: problem.change < 0 ? "bad" : problem.change > 0 ? "good" : "dim" }, `${problem.change > 0 ? "+" : ""}${(100 * problem.change).toFixed(0)}`),
      h("td", {}, number(problem.samples)),
      h("td", {}, number(problem.step)),
      h("td", { class: "word", dir: "auto" }, trained ? problem.state : problem.answer)))));
}

function sparkline(rates) {
  const svg = document.createElementNS(SVG, "svg");
  const text = `pass rates: ${rates.map((rate) => percent(rate, 0)).join(", ")}`;
  for (const [name, value] of Object.entries({ viewBox: "0 0 80 20", class: "spark", role: "img", "aria-label": text })) svg.setAttribute(name, value);
  const at = (rate, i) => [rates.length < 2 ? 76 : 4 + (72 * i) / (rates.length - 1), 17 - 14 * rate];
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", rates.map((rate, i) => at(rate, i).join(",")).join(" "));
  const dot = document.createElementNS(SVG, "circle");
  const [x, y] = at(rates.at(-1), rates.length - 1);
  for (const [name, value] of Object.entries({ cx: x, cy: y, r: 2.2 })) dot.setAttribute(name, value);
  svg.append(line, dot);
  return svg;
}
