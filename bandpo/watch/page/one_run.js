// Views of a single run: the one of the address, or the first of those chosen.

import { h, select } from "./dom.js";
import { nameOf } from "./runs.js";
import { go, now } from "./state.js";

/** A view with tools above a body; draw(context, run) fills both. */
export class OneRun {
  constructor() {
    this.tools = h("div", { class: "tools bar-of-tools" });
    this.body = h("div", {});
    this.element = h("div", {}, this.tools, this.body);
  }

  async update(context) {
    const run = theRun(context);
    return run ? this.draw(context, run) : this.nothing("Choose a run.");
  }

  nothing(words) {
    this.shown = null;
    this.body.replaceChildren(h("p", { class: "dim empty" }, words));
  }

  destroy() {}
}

export function theRun({ chosen }) {
  const of = now().text("one");
  return chosen.includes(of) ? of : chosen[0];
}

export function runSelect({ chosen, runs, labels }, run) {
  if (chosen.length < 2) return "";
  const options = chosen.map((id) => [id, nameOf(id, runs, labels)]);
  return select("run", options, run, (one) => go({ one, of: "", step: "", page: "", line: "", problem: "" }));
}
