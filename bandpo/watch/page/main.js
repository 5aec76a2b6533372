// Asks for what the view needs, again and again, and draws what has changed.

import { ask } from "./api.js";
import { Clipping } from "./clipping.js";
import { Curves } from "./curves.js";
import { h } from "./dom.js";
import { Log } from "./log.js";
import { Problems } from "./problems.js";
import { chosenOf, drawLegend, drawRuns, looksOf } from "./runs.js";
import { Samples } from "./samples.js";
import { Settings } from "./settings.js";
import { go, now, onChange } from "./state.js";

const VIEWS = { curves: Curves, clipping: Clipping, samples: Samples, problems: Problems, settings: Settings, log: Log };
// What only one view means does not follow into another one.
const OWN = { problem: "", line: "", page: "", query: "", verdict: "", score: "", order: "", step: "", of: "" };
const EVERY_MS = 3000;

let view = null;
let shown = "";
let overview = null;
let busy = false;
let again = false;
let timer = 0;

function drawViews(name) {
  const entry = (key) => h("a", {
    href: now().with({ view: key, ...OWN }),
    "aria-current": key === name ? "page" : null,
    on: { click: (event) => { event.preventDefault(); go({ view: key, ...OWN }, { push: true }); } },
  }, key[0].toUpperCase() + key.slice(1));
  document.getElementById("views").replaceChildren(...Object.keys(VIEWS).map(entry));
}

function viewOf(name) {
  if (name !== shown) {
    view?.destroy();
    view = new VIEWS[name]();
    shown = name;
  }
  return view;
}

async function labelsOf(chosen) {
  return chosen.length > 1 ? (await ask("settings", { run: chosen })).labels : {};
}

function report(words, bad = false) {
  const live = document.getElementById("live");
  if (live.textContent !== words) live.textContent = words;
  live.className = bad ? "bad" : "";
}

// One drawing at a time: what is asked for meanwhile is drawn behind it.
async function update() {
  clearTimeout(timer);
  again = busy;
  if (busy) return;
  busy = true;
  try {
    await draw();
  } finally {
    busy = false;
    if (again) update();
    else timer = setTimeout(update, document.hidden ? 10 * EVERY_MS : EVERY_MS);
  }
}

async function draw() {
  try {
    overview = await ask("runs");
    const { runs } = overview;
    const chosen = chosenOf(runs);
    const labels = await labelsOf(chosen);
    const looks = looksOf(chosen, labels, now().text("colour"));
    const name = VIEWS[now().text("view")] ? now().text("view") : "curves";
    document.getElementById("folder").textContent = overview.folder;
    document.title = `${overview.folder.split("/").at(-1)} – bandpo watch`;
    drawViews(name);
    drawRuns(runs, chosen, looks);
    drawLegend(chosen, runs, labels, looks);
    await viewOf(name).update({ chosen, runs, labels, looks });
    const place = document.getElementById("view");
    if (place.firstChild !== view.element) place.replaceChildren(view.element); // once it is whole
    report(runs.some((run) => run.state === "running") ? "live" : "up to date");
    document.body.dataset.ready = String(Number(document.body.dataset.ready ?? 0) + 1);
  } catch (error) {
    const gone = error instanceof TypeError && /fetch/i.test(error.message);
    report(gone ? "bandpo watch does not answer: is it still running?" : `${error.message}`, true);
    if (!gone) console.error(error);
  }}

function useTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  shown = ""; // charts take their colours when they are made
}

const theme = document.getElementById("theme");
try {
  theme.value = localStorage.getItem("theme") ?? "";
} catch { /* a browser that keeps nothing */ }
useTheme(theme.value);
theme.addEventListener("change", () => {
  try {
    localStorage.setItem("theme", theme.value);
  } catch { /* likewise */ }
  useTheme(theme.value);
  update();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { useTheme(theme.value); update(); });
for (const id of ["filter", "order"]) document.getElementById(id).addEventListener("input", update);
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address behind # holds the view
  document.getElementById("view").focus();
});
document.getElementById("chooser").open = matchMedia("(min-width: 60rem)").matches;
document.addEventListener("visibilitychange", () => { if (!document.hidden) update(); });
onChange(update);
update();
