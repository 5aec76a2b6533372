// The view is in the address behind the #, so that a link shows another reader the same.

const listeners = [];

export function onChange(listener) {
  listeners.push(listener);
}

export class State {
  constructor(text = location.hash) {
    this.values = new URLSearchParams(text.replace(/^#/, ""));
  }
  text(name, otherwise = "") {
    return this.values.get(name) ?? otherwise;
  }
  all(name) {
    return this.values.getAll(name);
  }
  has(name) {
    return this.values.has(name);
  }
  with(changes) {
    const values = new URLSearchParams(this.values);
    for (const [name, value] of Object.entries(changes)) {
      values.delete(name);
      if (Array.isArray(value)) for (const one of value) values.append(name, one);
      else if (value !== null && value !== "") values.set(name, value);
    }
    // URLSearchParams writes more escapes than an address needs.
    return `#${values.toString().replaceAll("%2F", "/").replaceAll("%40", "@").replaceAll("%3A", ":")}`;
  }
}

export const now = () => new State();

function tell() {
  for (const listener of listeners) listener();
}

export function go(changes, { push = false } = {}) {
  history[push ? "pushState" : "replaceState"](null, "", now().with(changes));
  tell();
}

addEventListener("popstate", tell);
addEventListener("hashchange", tell);
