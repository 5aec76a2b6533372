// Elements from names, properties and children. Texts become text nodes: nothing that a run wrote
// is ever read as HTML.

export function h(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (key === "vars") {
      for (const [name, text] of Object.entries(value)) element.style.setProperty(name, text);
    } else if (key === "value" || key === "checked" || key === "selected") {
      element[key] = value;
    } else {
      element.setAttribute(key, value === true ? "" : String(value));
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export function select(label, options, value, choose) {
  return h("label", { class: "field" }, label,
    h("select", { name: label, on: { change: (event) => choose(event.target.value) } },
      options.map(([key, text]) => h("option", { value: key, selected: key === value }, text))));
}

export function number(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value; // NaN, infinite
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(2).replace("e+", "e");
  if (size >= 1000) return value.toLocaleString("en", { maximumFractionDigits: 0 });
  return String(Number(value.toPrecision(size < 0.1 ? 3 : 4)));
}

export function percent(share, digits = 1) {
  if (share === null || share === undefined) return "–";
  const value = 100 * share, least = 10 ** -digits;
  return value > 0 && value < least ? `<${least}%` : `${value.toFixed(digits)}%`;
}

export function ago(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} days ago`;
}

export function pager(answer, turn) {
  if (answer.pages < 2) return null;
  const button = (text, page, off) =>
    h("button", { type: "button", disabled: off, on: { click: () => turn(page) } }, text);
  return h("p", { class: "pager" },
    button("← previous", answer.page - 1, answer.page < 1),
    h("span", {}, `page ${answer.page + 1} of ${answer.pages}`),
    button("next →", answer.page + 1, answer.page + 1 >= answer.pages));
}
