// One answer's tokens as a list one can walk: shaded by entropy, decision points marked.
// Text, entropy and gate arrive in pieces; a token is drawn anew when more of it is known.

import { make, spoken } from "./dom.js";

const FULL_SHADE = 2; // nats

/** Entropy in nats of the best `top` of a distribution, all the rest taken as one token. */
export function estimate(top) {
  const known = top.map((entry) => Math.exp(entry.logprob));
  const rest = Math.max(0, 1 - known.reduce((sum, p) => sum + p, 0));
  return [...known, rest].reduce((sum, p) => (p > 1e-12 ? sum - p * Math.log(p) : sum), 0);
}

/** Tokens of one answer: `{text, logprob, top, entropy, gated, id, rank, baseTop, end}` each. */
export class Tokens {
  /** `exact`: entropies come from the gate; else they are estimated from the answer's logprobs. */
  constructor(name, { exact, tau, onOpen, onClose }) {
    Object.assign(this, { exact, tau, onOpen, onClose });
    this.items = [];
    this.early = new Map(); // trace entries of tokens whose text has not come yet
    this.opened = null;
    this.element = make("div", {
      class: "tokens",
      role: "listbox",
      "aria-label": `Tokens of ${name}`,
      "aria-orientation": "horizontal",
      "aria-describedby": "keys",
    });
    this.element.addEventListener("keydown", (event) => this.#key(event));
    this.element.addEventListener("click", (event) => {
      const at = this.#at(event.target);
      if (at >= 0) this.#toggle(at);
    });
    this.element.addEventListener("focusin", (event) => {
      const at = this.#at(event.target);
      if (at < 0) return;
      this.#roveTo(at);
      if (this.opened !== null && this.opened !== at) this.open(at);
    });
  }

  get gated() {
    return this.items.filter((item) => item.gated).length;
  }

  get above() {
    return this.items.filter((item) => this.#isAbove(item)).length;
  }

  /** The next token. */
  add({ token, logprob, top_logprobs: top }) {
    const position = this.items.length;
    const item = { position, text: token, logprob, top: top ?? [] };
    if (!this.exact && top?.length) item.entropy = estimate(top);
    item.element = make("span", { class: "token", role: "option", tabindex: position ? -1 : 0, "aria-selected": "false" });
    this.items.push(item);
    this.element.append(item.element);
    const entry = this.early.get(position);
    if (entry) this.trace(entry);
    else this.#draw(item);
  }

  /** What the gate says about one token. */
  trace(entry) {
    const item = this.items[entry.position];
    if (!item) return void this.early.set(entry.position, entry);
    this.early.delete(entry.position);
    Object.assign(item, {
      entropy: entry.entropy,
      gated: entry.gated ?? true, // a trace of decision points alone does not say so
      id: entry.token_id,
      rank: entry.rank,
      baseTop: entry.base_top,
    });
    this.#draw(item);
  }

  /** The answer is over: what of the tokens is no part of its text (an end mark, say)? */
  settle(content) {
    let at = 0;
    for (const item of this.items) {
      item.end = !(item.text && content.startsWith(item.text, at));
      if (item.end) this.#draw(item);
      else at += item.text.length;
    }
  }

  #isAbove(item) {
    return this.exact && !item.gated && this.tau !== undefined && item.entropy > this.tau;
  }

  #draw(item) {
    const { element, text, entropy, gated, end } = item;
    element.textContent = end ? "" : text;
    element.classList.toggle("end", Boolean(end));
    element.classList.toggle("gated", Boolean(gated));
    element.classList.toggle("moved", Boolean(gated) && item.rank !== 1);
    element.classList.toggle("above", this.#isAbove(item));
    if (end) element.dataset.glyph = text || "·";
    else if (text.includes("\n")) element.dataset.glyph = "↵";
    else if (text === "") element.dataset.glyph = "·";
    else delete element.dataset.glyph;
    if (entropy !== undefined) element.style.setProperty("--h", `${Math.round(100 * Math.min(1, entropy / FULL_SHADE))}%`);
    element.setAttribute("aria-label", this.#label(item));
  }

  #label(item) {
    const parts = [item.end ? `${spoken(item.text)}, not part of the text` : spoken(item.text)];
    if (item.entropy !== undefined) parts.push(`entropy ${item.entropy.toFixed(2)}`);
    if (item.gated) parts.push(item.rank === 1 ? "decision point, the base's best" : "decision point, not the base's best");
    else if (this.#isAbove(item)) parts.push("above tau");
    return parts.join(", ");
  }

  #at(target) {
    const element = target.closest?.('[role="option"]');
    return element ? this.items.findIndex((item) => item.element === element) : -1;
  }

  #roveTo(at) {
    for (const item of this.items) item.element.tabIndex = item.position === at ? 0 : -1;
  }

  #toggle(at) {
    if (this.opened === at) return this.close();
    this.items[at].element.focus();
    return this.open(at);
  }

  /** Show the candidates of the token at `at`. */
  open(at) {
    if (this.opened !== null) this.items[this.opened].element.setAttribute("aria-selected", "false");
    this.opened = at;
    this.items[at].element.setAttribute("aria-selected", "true");
    this.onOpen(this.items[at]);
  }

  /** Put the candidates away. */
  close() {
    if (this.opened === null) return;
    this.items[this.opened].element.setAttribute("aria-selected", "false");
    this.items[this.opened].element.focus();
    this.opened = null;
    this.onClose();
  }

  #key(event) {
    const at = this.#at(event.target);
    if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const marked = (item) => item.gated || this.#isAbove(item);
    const before = this.items.findLast((item) => item.position < at && marked(item))?.position;
    const after = this.items.find((item) => item.position > at && marked(item))?.position;
    const targets = {
      ArrowLeft: at - 1,
      ArrowRight: at + 1,
      ArrowUp: before,
      ArrowDown: after,
      Home: 0,
      End: this.items.length - 1,
    };
    if (event.key in targets) this.items[targets[event.key]]?.element.focus();
    else if (event.key === "Enter" || event.key === " ") this.#toggle(at);
    else if (event.key === "Escape") this.close();
    else return;
    event.preventDefault();
  }
}
