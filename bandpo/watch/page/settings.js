// The settings in which the chosen runs differ.

import { ask } from "./api.js";
import { h } from "./dom.js";
import { nameOf } from "./runs.js";

// A line may end behind every part of a key.
const broken = (key) => key.split(/(?<=\.)/).flatMap((part) => [part, h("wbr")]);

export class Settings {
  constructor() {
    this.element = h("div", {});
  }

  async update({ chosen, runs, labels, looks }) {
    const answer = await ask("settings", { run: chosen });
    if (answer === this.shown) return;
    this.shown = answer;
    const keys = Object.keys(answer.rows);
    if (!keys.length) {
      const words = chosen.length < 2 ? "Choose two runs or more to see in which settings they differ." : "The chosen runs have the same settings, apart from names and folders.";
      return this.element.replaceChildren(h("p", { class: "dim empty" }, words));
    }
    this.element.replaceChildren(
      h("p", { class: "dim" }, `${keys.length} settings differ; names, folders and trackers are not compared.`),
      h("div", { class: "wide" }, h("table", { class: "settings" },
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "setting"), answer.runs.map((id) => h("th", { scope: "col" }, h("span", { class: "swatch", vars: { "--own": `var(${looks[id].colour})` } }), nameOf(id, runs, labels))))),
        h("tbody", {}, keys.map((key) => h("tr", {}, h("td", {}, h("code", {}, broken(key))), answer.rows[key].map((value) => h("td", { class: value === null ? "dim" : "" }, value ?? "not set"))))))));
  }

  destroy() {}
}
