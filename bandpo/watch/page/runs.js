// The list of runs: which there are, how they are, and which of them are in the view.

import { ago, h, number } from "./dom.js";
import { go, now } from "./state.js";

export const MOST_CHOSEN = 32;
const FIRST_CHOSEN = 6;
const COLOURS = 8;
const DASHES = [[], [8, 4], [2, 3]];

let first = [];

// The runs of the view: those of the address, or the ones that were written last when it was opened.
export function chosenOf(runs) {
  const there = new Set(runs.map((run) => run.id));
  if (now().has("run")) return now().all("run").filter((id) => there.has(id)).slice(0, MOST_CHOSEN);
  first = first.filter((id) => there.has(id));
  if (!first.length) first = runs.slice(0, FIRST_CHOSEN).map((run) => run.id).sort();
  return first;
}

// Colour and dash of every chosen run: by its place, or by its value of a setting.
export function looksOf(chosen, labels, key) {
  const value = (id) => (key ? labels[id]?.[key] ?? "–" : id);
  const places = [...new Set(chosen.map(value))];
  return Object.fromEntries(chosen.map((id) => {
    const place = places.indexOf(value(id));
    return [id, { colour: `--c${place % COLOURS}`, dash: DASHES[Math.floor(place / COLOURS) % DASHES.length] }];
  }));
}

// Few words for a run: what tells it from the others, else its name.
export function nameOf(id, runs, labels) {
  const run = runs.find((one) => one.id === id);
  const words = Object.entries(labels[id] ?? {}).map(([key, value]) => {
    const short = key === "method.name" ? "" : `${key.split(".").at(-1)}=`;
    return `${short}${value ?? "–"}`;
  });
  const same = Object.values(labels).filter((one) => JSON.stringify(one) === JSON.stringify(labels[id]));
  if (!words.length) return run ? titleOf(run, runs) : id;
  return same.length > 1 ? `${words.join(" ")} (${id})` : words.join(" ");
}

const ORDERS = {
  written: (a, b) => b.written - a.written,
  name: (a, b) => a.id.localeCompare(b.id, "en", { numeric: true }),
  reward: (a, b) => (Number(b.reward) || 0) - (Number(a.reward) || 0),
  accuracy: (a, b) => (Number(b.accuracy) || 0) - (Number(a.accuracy) || 0),
  step: (a, b) => (b.step ?? -1) - (a.step ?? -1),
};

export function drawRuns(runs, chosen, looks) {
  const words = document.getElementById("filter").value.toLowerCase().split(/\s+/);
  const text = (run) => [run.id, run.name, run.method, `seed=${run.seed}`, run.model, run.state].join(" ").toLowerCase();
  const shown = runs.filter((run) => words.every((word) => text(run).includes(word)));
  shown.sort(ORDERS[document.getElementById("order").value]);
  document.getElementById("count").textContent = `${chosen.length} of ${runs.length} in the view`;
  const focused = document.activeElement?.dataset?.run;
  document.getElementById("runs").replaceChildren(
    ...shown.map((run) => row(run, titleOf(run, runs), chosen, looks[run.id])),
    ...(shown.length ? [] : [h("li", { class: "dim empty" }, runs.length ? "No run fits this filter." : "No runs here yet.")]));
  if (focused) document.querySelector(`#runs [data-run="${CSS.escape(focused)}"]`)?.focus();
}

// A run's name, or where it is, if another one has the same name.
const titleOf = (run, runs) => (runs.some((one) => one !== run && one.name === run.name) ? run.id : run.name);

function row(run, title, chosen, look) {
  const choose = (event) => {
    const others = chosen.filter((id) => id !== run.id);
    go({ run: event.target.checked ? [...others, run.id].slice(-MOST_CHOSEN) : others.length ? others : [""] });
  };
  const only = () => go({ run: [run.id] });
  const share = run.steps ? Math.min(1, (run.step ?? 0) / run.steps) : 0;
  return h("li", {},
    h("label", { class: "run", title: run.id },
      h("input", { type: "checkbox", name: "run", "data-run": run.id, checked: chosen.includes(run.id), on: { change: choose } }),
      h("span", { class: "swatch", vars: look ? { "--own": `var(${look.colour})` } : {} }),
      h("span", { class: "name" }, title),
      h("span", { class: `state ${run.state}` }, run.state)),
    h("button", { class: "only", type: "button", "aria-label": `show ${title} alone`, on: { click: only } }, "only"),
    h("div", { class: "meta dim" }, [run.method, run.seed === "" ? "" : `seed ${run.seed}`, ago(Date.now() / 1000 - run.written)].filter(Boolean).join(" · ")),
    h("div", { class: "numbers" },
      fact("step", run.steps ? `${run.step ?? 0}/${run.steps}` : number(run.step)),
      fact("reward", number(run.reward)),
      fact("entropy", number(run.entropy)),
      run.benchmark ? fact(run.benchmark.split("/").at(-1), number(run.accuracy)) : null),
    h("div", { class: "bar", vars: { "--share": String(share) } }));
}

function fact(name, value) {
  return h("span", {}, h("span", { class: "dim" }, `${name} `), value);
}

export function drawLegend(chosen, runs, labels, looks) {
  document.getElementById("legend").replaceChildren(...chosen.map((id) =>
    h("span", { class: "chip", title: id },
      h("span", { class: "swatch", vars: { "--own": `var(${looks[id].colour})` } }), nameOf(id, runs, labels))));
}
