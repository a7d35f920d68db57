// One column: one model's answer as it streams, its figures, and the token one looks into.

import { Refusal, stream } from "./api.js";
import { DASH, make, milliseconds, percent, plain } from "./dom.js";
import { inspect } from "./inspect.js";
import { Tokens } from "./tokens.js";

const TOP = 6; // one more than shown: vLLM lists the sampled token among them even if it is not
const TOP_FOR_ENTROPY = 20;
const BOXED = /\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}/g;

export class Column {
  /**
   * `kind`: "base", "always" or "gated". `model`: the name to ask for, `title`: the one to show.
   * `exact`: the server's gate gives the entropies; `tau`: its threshold where known.
   */
  constructor({ kind, model, title, version, base, exact, tau, say }) {
    Object.assign(this, { kind, model, title, base, exact, say });
    const caption = { base: "Base", always: "Adapter at every step", gated: "Adapter at decision points" }[kind];
    this.figures = Object.fromEntries(
      [["gate", kind === "base" && exact ? "Above tau" : "Gate rate"], ["first", "First token"], ["between", "Between"], ["rate", "Tokens/s"]].map(
        ([name, label]) => [name, { label, value: make("dd", { "data-figure": name, text: DASH }) }],
      ),
    );
    this.tokens = new Tokens(title, {
      exact,
      tau,
      onOpen: (item) => this.#open(item),
      onClose: () => (this.panel.hidden = true),
    });
    this.state = make("span", { class: "state", text: "waiting" });
    this.summary = make("p", { class: "summary" });
    this.note = make("p", { class: "note", hidden: true });
    this.text = make("p", { class: "hidden", "data-answer": true });
    this.panel = make("div", { class: "panel", role: "group", "aria-label": `Candidates, ${title}`, hidden: true });
    const list = make("dl", { class: "figures" });
    for (const { label, value } of Object.values(this.figures)) list.append(make("div", {}, make("dt", { text: label }), value));
    this.element = make(
      "article",
      { class: `column ${kind}`, "aria-label": title, "data-kind": kind, "data-model": title },
      make(
        "header",
        {},
        make("div", {}, make("p", { class: "kind", text: caption }), make("h3", { text: title, title: version })),
        this.state,
      ),
      list,
      this.tokens.element,
      this.text,
      this.note,
      this.summary,
      this.panel,
    );
    if (kind === "always" || !exact) {
      this.#remark("Shaded by this model’s own entropy, estimated from its top 20 (the rest counted as one token).");
    }
  }

  /** Ask and show the answer to its end; never throws. */
  async run(request, xargs, signal) {
    const body = {
      ...request,
      model: this.model,
      logprobs: true,
      top_logprobs: this.exact ? TOP : TOP_FOR_ENTROPY,
      ...(xargs && { vllm_xargs: xargs }),
    };
    this.began = performance.now();
    this.content = "";
    this.#set("streaming", "streaming");
    try {
      for await (const chunk of stream(body, signal)) this.#take(chunk);
      this.tokens.settle(this.content);
      this.#set("done", this.finish === "length" ? "cut at max tokens" : "done");
    } catch (error) {
      if (error.name === "AbortError") this.#set("stopped", "stopped");
      else if (error instanceof Refusal) this.#fail(error);
      else {
        this.#fail(new Refusal(`The answer could not be read: ${error.message}`, 0));
      }
    }
    this.#figures();
    this.text.textContent = this.content;
    this.summary.replaceChildren(...this.#summary());
  }

  /** How it went, in a sentence. */
  get outcome() {
    const marks = this.kind === "gated" ? `, ${this.tokens.gated} at decision points` : "";
    return `${this.title}: ${this.state.textContent}, ${this.tokens.items.length} tokens${marks}.`;
  }

  #take(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const { delta = {} } = choice;
    const said = (delta.reasoning ?? delta.reasoning_content ?? "") + (delta.content ?? "");
    this.content += said;
    const tokens = choice.logprobs?.content ?? (said ? [{ token: said, logprob: NaN, top_logprobs: [] }] : []);
    for (const token of tokens) this.tokens.add(token);
    for (const entry of choice.gate_trace ?? []) this.tokens.trace(entry);
    if (choice.finish_reason) {
      this.finish = choice.finish_reason;
      this.tokens.settle(this.content);
    }
    if (!tokens.length) return;
    const now = performance.now();
    this.firstAt ??= now;
    this.lastAt = now;
    this.drawing ??= requestAnimationFrame(() => this.#figures());
  }

  #figures() {
    this.drawing = undefined;
    const { items } = this.tokens;
    const share = { base: this.exact && this.tokens.tau !== undefined ? this.tokens.above : undefined, gated: this.tokens.gated }[this.kind];
    const count = items.length;
    const write = (name, text) => (this.figures[name].value.textContent = text);
    write("gate", count && share !== undefined ? percent(share / count) : DASH);
    write("first", milliseconds(this.firstAt - this.began));
    write("between", milliseconds(count > 1 ? (this.lastAt - this.firstAt) / (count - 1) : undefined));
    write("rate", plain(count ? (1000 * count) / (this.lastAt - this.began) : undefined));
  }

  #summary() {
    const parts = [];
    const boxed = [...this.content.matchAll(BOXED)].at(-1)?.[1];
    if (boxed !== undefined) parts.push(make("span", { class: "boxed" }, "boxed ", make("strong", { text: boxed })));
    const tokens = this.usage?.completion_tokens ?? this.tokens.items.length;
    if (tokens) parts.push(make("span", { text: `${tokens} tokens` }));
    const gated = this.usage?.completion_tokens_details?.gated_tokens;
    if (this.kind === "gated" && gated !== undefined) {
      parts.push(make("span", { "data-gated": gated, text: `${gated} at decision points` }));
    }
    return parts;
  }

  #set(state, text) {
    this.element.dataset.state = state;
    this.state.textContent = text;
  }

  #remark(text, failed = false) {
    this.note.hidden = false;
    this.note.classList.toggle("failed", failed);
    this.note.textContent = text;
  }

  #fail({ message, status }) {
    this.#set("failed", "failed");
    const hint = status === 401 ? " Put the server’s API key into the field at the top and press Connect." : "";
    this.#remark(message + hint, true);
  }

  async #open(item) {
    const said = await inspect(this.panel, item, {
      base: this.base,
      own: this.kind === "always" ? this.title : "base",
      exact: this.exact,
      tau: this.tokens.tau,
      isCurrent: () => this.tokens.opened === item.position,
    });
    if (!said) return; // another token was opened meanwhile, or none is any more
    this.panel.hidden = false;
    this.panel.scrollIntoView({ block: "nearest" });
    this.say(said);
  }
}
