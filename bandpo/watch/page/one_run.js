// Views of a single run: the one of the address, or the first of those chosen.

import { select } from "./dom.js";
import { nameOf } from "./runs.js";
import { go, now } from "./state.js";

export function theRun({ chosen }) {
  const of = now().text("one");
  return chosen.includes(of) ? of : chosen[0];
}

export function runSelect({ chosen, runs, labels }, run) {
  if (chosen.length < 2) return "";
  const options = chosen.map((id) => [id, nameOf(id, runs, labels)]);
  return select("run", options, run, (one) => go({ one, of: "", step: "", page: "", line: "", problem: "" }));
}
