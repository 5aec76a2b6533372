// Questions to the server. An answer that has not changed is neither sent nor drawn again.

const kept = new Map(); // address → {tag, answer}
const MOST_KEPT = 40;

export async function ask(question, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) query.append(name, one);
  }
  const address = `api/${question}?${query}`;
  const known = kept.get(address);
  const response = await fetch(address, {
    cache: "no-store",
    headers: known ? { "If-None-Match": known.tag } : {},
  });
  if (response.status === 304 && known) return known.answer;
  const answer = await response.json();
  if (!response.ok) throw new Refusal(answer.error ?? response.statusText, response.status);
  kept.delete(address);
  kept.set(address, { tag: response.headers.get("ETag") ?? "", answer });
  if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
  return answer;
}

export class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}
