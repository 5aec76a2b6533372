// What a run has printed, and what of it reports something wrong.

import { ask } from "./api.js";
import { h } from "./dom.js";
import { OneRun, runSelect } from "./one_run.js";

export class Log extends OneRun {
  async draw(context, run) {
    if (!this.tools.contains(document.activeElement)) this.tools.replaceChildren(runSelect(context, run));
    const answer = await ask("log", { run });
    if (answer === this.shown) return;
    this.shown = answer;
    const reports = [
      ...answer.diagnostics.map((name) => ({ text: `ended over nonfinite numbers: see diagnostics/${name}`, severe: true })),
      ...answer.reports,
    ];
    this.body.replaceChildren(
      h("h2", {}, "Alarms and faults"),
      reports.length ? h("ul", { class: "reports" }, reports.map(({ text, severe }) => h("li", { class: severe ? "severe" : "" }, text))) : h("p", { class: "dim" }, "None in run.log."),
      h("h2", {}, "The end of run.log"),
      answer.lines.length ? h("pre", { class: "text log", tabindex: 0 }, answer.lines.join("\n")) : h("p", { class: "dim" }, "There is no run.log."));
    const log = this.body.querySelector(".log");
    if (log) log.scrollTop = log.scrollHeight;
  }
}
