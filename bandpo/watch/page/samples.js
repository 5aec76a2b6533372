// Completions to read, with what they were scored.

import { ask } from "./api.js";
import { h, number, pager, select } from "./dom.js";
import { runSelect, theRun } from "./one_run.js";
import { go, now } from "./state.js";

const ORDERS = [["file", "order of the file"], ["lowest", "lowest reward"], ["highest", "highest reward"], ["longest", "longest"], ["shortest", "shortest"]];
const SCORES = [["", "any"], ["0", "above 0"], ["none", "0 or less"], ["0.5", "above ½"]];
const GOOD = new Set(["correct"]);
const ODD = new Set(["timeout", "crashed", "bad_gold", "unknown"]);

export const toneOf = (verdict) => (GOOD.has(verdict) ? "good" : ODD.has(verdict) ? "odd" : "bad");

export class Samples {
  constructor() {
    this.tools = h("div", { class: "tools bar-of-tools" });
    this.list = h("ul", { class: "samples", "aria-label": "samples" });
    this.more = h("div", {});
    this.text = h("article", { class: "reader", "aria-live": "polite" });
    this.note = h("p", { class: "dim" });
    this.panes = h("div", { class: "panes" }, h("div", { class: "left" }, this.note, this.list, this.more), this.text);
    this.element = h("div", {}, this.tools, this.panes);
    this.list.addEventListener("keydown", (event) => this.walk(event));
  }

  async update(context) {
    const run = theRun(context);
    if (!run) return this.nothing("Choose a run.");
    const sources = await ask("sources", { run });
    const source = pick(sources);
    this.drawTools(context, run, sources, source);
    if (!source) return this.nothing("No samples are written yet: trainer.sample_every sets how often they are.");
    const state = now();
    const score = state.text("score");
    const limits = score === "none" ? { most: "0" } : score ? { least: String(Number(score) + 1e-9) } : {};
    const answer = await ask("samples", {
      run, of: source.of, step: source.step, page: state.text("page", "0"), ...limits,
      verdict: state.text("verdict"), query: state.text("query"), problem: state.text("problem"), order: state.text("order", "file"),
    });
    this.question = { run, of: source.of, step: source.step };
    this.drawVerdicts(answer.verdicts);
    if (answer === this.answer) return;
    this.answer = answer;
    this.note.textContent = `${number(answer.found)} of ${number(answer.total)} samples`;
    this.drawList();
  }

  nothing(words) {
    this.answer = null;
    this.list.replaceChildren();
    this.more.replaceChildren();
    this.note.textContent = words;
    this.text.replaceChildren();
  }

  drawTools(context, run, sources, source) {
    const key = JSON.stringify([context.chosen, run, sources, source, now().text("problem")]);
    if (key === this.drawn) return;
    this.drawn = key;
    const ofs = [...new Set(sources.map((one) => one.of))];
    const steps = sources.filter((one) => one.of === source?.of).map((one) => String(one.step)).reverse();
    this.verdicts = h("select", { name: "verdict", "aria-label": "verdict", on: { change: (e) => go({ verdict: e.target.value, page: "" }) } });
    const search = (event) => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => go({ query: event.target.value, page: "" }), 250);
    };
    const problem = now().text("problem");
    this.tools.replaceChildren(
      runSelect(context, run),
      ofs.length ? select("of", ofs.map((of) => [of, of === "train" ? "training" : `evaluation ${of}`]), source?.of, (of) => go({ of, step: "", page: "" })) : "",
      steps.length ? select("step", steps.map((step) => [step, step]), String(source?.step), (step) => go({ step, page: "" })) : "",
      h("label", { class: "field" }, "verdict", this.verdicts),
      select("reward", SCORES, now().text("score"), (score) => go({ score, page: "" })),
      select("order", ORDERS, now().text("order", "file"), (order) => go({ order, page: "" })),
      h("input", { type: "search", name: "query", placeholder: "search texts", "aria-label": "search texts", value: now().text("query"), on: { input: search } }),
      problem ? h("button", { type: "button", on: { click: () => go({ problem: "", page: "" }) } }, `× problem ${problem.slice(0, 40)}`) : "");
  }

  drawVerdicts(counts) {
    const chosen = now().text("verdict");
    const options = [["", "any"], ...Object.entries(counts).map(([name, count]) => [name, `${name.replaceAll("_", " ")} (${count})`])];
    if (document.activeElement === this.verdicts) return;
    this.verdicts.replaceChildren(...options.map(([key, text]) => h("option", { value: key, selected: key === chosen }, text)));
  }

  drawList() {
    const { samples } = this.answer;
    const line = Number(now().text("line", "-1"));
    this.list.replaceChildren(...samples.map((sample, i) => h("li", {},
      sample.problem_id === samples[i - 1]?.problem_id ? null : h("div", { class: "group dim", dir: "auto" }, sample.problem_id, h("b", {}, ` ${sample.answer}`)),
      h("button", { type: "button", class: "sample", "aria-current": sample.line === line, on: { click: () => this.open(i) } },
        h("span", { class: `verdict ${toneOf(sample.verdict)}` }, sample.verdict.replaceAll("_", " ")),
        h("span", { class: "reward" }, number(sample.reward)),
        h("span", { class: "start", dir: "auto" }, firstWords(sample)),
        h("span", { class: "dim count" }, `${number(sample.tokens)} tok`)))));
    this.more.replaceChildren(pager(this.answer, (page) => go({ page: page || "", line: "" })) ?? "");
    const place = samples.findIndex((sample) => sample.line === line);
    if (samples.length) this.show(Math.max(0, place));
    else this.text.replaceChildren(h("p", { class: "dim empty" }, "No sample fits."));
  }

  open(place) {
    go({ line: String(this.answer.samples[place].line) });
    this.show(place);
    if (matchMedia("(max-width: 60rem)").matches) this.text.scrollIntoView({ block: "start" });
  }

  walk(event) {
    const by = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
    if (!by || !this.answer) return;
    event.preventDefault();
    const place = Math.min(this.answer.samples.length - 1, Math.max(0, this.place + by));
    go({ line: String(this.answer.samples[place].line) });
    this.show(place);
    this.list.querySelectorAll("button")[place].focus();
  }

  show(place) {
    this.place = place;
    const sample = this.answer.samples[place];
    this.list.querySelectorAll("button").forEach((button, i) => button.setAttribute("aria-current", String(i === place)));
    this.text.replaceChildren(...parts(sample, sample.cut ? () => this.whole(place) : null));
  }

  async whole(place) {
    const { line } = this.answer.samples[place];
    const sample = await ask("sample", { ...this.question, line });
    this.answer.samples[place] = { ...sample, cut: false };
    this.show(place);
  }

  destroy() {}
}

function pick(sources) {
  const of = now().text("of", sources[0]?.of ?? "train");
  const own = sources.filter((source) => source.of === of);
  return own.find((source) => String(source.step) === now().text("step")) ?? own.at(-1) ?? sources.at(-1);
}

const firstWords = (sample) => sample.completion.slice(0, 160).replace(/\s+/g, " ") || "(empty)";

function parts(sample, whole) {
  const facts = [
    ["reward", number(sample.reward)],
    ...Object.entries(sample.parts).map(([name, value]) => [`reward/${name}`, number(value)]),
    ["reference answer", sample.answer],
    ["answer read", sample.extracted || "none"],
    ["tokens", `${number(sample.tokens)}${sample.truncated ? ", cut off by the limit" : ""}`],
    ["problem", sample.problem_id],
    ...(sample.detail ? [["detail", sample.detail]] : []),
  ];
  return [
    h("p", { class: "head" }, h("span", { class: `verdict ${toneOf(sample.verdict)}` }, sample.verdict.replaceAll("_", " "))),
    h("dl", {}, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", { dir: "auto" }, value)))),
    h("h3", {}, "Prompt"), h("pre", { class: "text", dir: "auto", tabindex: 0 }, sample.prompt),
    h("h3", {}, "Completion"), h("pre", { class: "text", dir: "auto", tabindex: 0 }, sample.completion),
    whole ? h("button", { type: "button", on: { click: whole } }, "show the whole text") : "",
  ];
}
