// What stood behind one token: the base's five best, and where the gate opened the corrected five.

import { tokenText } from "./api.js";
import { make, nats, percent, visible } from "./dom.js";

const SHOWN = 5;

/** [{text, p, taken}] of an answer's own logprobs. */
function ownTop(item) {
  return [...item.top]
    .sort((a, b) => b.logprob - a.logprob)
    .slice(0, SHOWN)
    .map(({ token, logprob }) => ({
      text: token,
      p: Math.exp(logprob),
      taken: token === item.text && Math.abs(logprob - item.logprob) < 1e-6,
    }));
}

/** [{text, p, taken}] of the base, as the gate saw it. */
function baseTop(item, base) {
  return Promise.all(
    item.baseTop.slice(0, SHOWN).map(async ({ token_id: id, probability }) => ({
      text: await tokenText(base, id),
      p: probability,
      taken: id === item.id,
    })),
  );
}

function table(caption, rows, item) {
  const body = make("tbody");
  const shown = rows.some((row) => row.taken) ? rows : [...rows, { text: item.text, taken: true, outside: true }];
  for (const { text, p, taken, outside } of shown) {
    const bar = make("span", { class: "bar", "aria-hidden": "true" });
    if (p !== undefined) bar.style.setProperty("--share", `${(100 * p).toFixed(1)}%`);
    body.append(
      make(
        "tr",
        { class: taken ? "taken" : undefined, "data-p": outside ? undefined : p },
        make("th", { scope: "row" }, make("code", { text: visible(text) })),
        make("td", { class: "share" }, outside ? make("span", { class: "soft", text: "beyond the five" }) : bar),
        make("td", { class: "figure", text: outside ? "" : percent(p) }),
        make("td", { class: "mark", text: taken ? "✓ taken" : "" }),
      ),
    );
  }
  const head = make("tr", { class: "hidden" });
  for (const text of ["Token", "Share", "Probability", "Taken"]) head.append(make("th", { scope: "col", text }));
  return make("table", {}, make("caption", { text: caption }), make("thead", {}, head), body);
}

const inWords = (rows) => rows.map((row) => `${visible(row.text)} ${percent(row.p)}${row.taken ? ", taken" : ""}`).join("; ");

/**
 * Fill `panel` with one token's candidates; returns the same in a sentence.
 *
 * `own`: whose distribution the answer's own logprobs are at an ungated token ("the base", "alpha").
 */
export async function inspect(panel, item, { base, own, exact, tau, isCurrent }) {
  const ours = ownTop(item);
  const theirs = item.gated && item.baseTop ? await baseTop(item, base) : undefined;
  if (!isCurrent()) return "";
  const facts = [`position ${item.position}`];
  if (item.entropy !== undefined) facts.push(`entropy ${exact ? "" : "about "}${nats(item.entropy)}`);
  if (item.gated) facts.push(item.rank ? `base rank ${item.rank}` : "base rank beyond 20");
  else if (exact && tau !== undefined) facts.push(item.entropy > tau ? "above tau, gate held shut" : "gate shut");
  const tables = theirs
    ? [table("Base’s top 5", theirs, item), table("After the correction", ours, item)]
    : [table(`${own === "base" ? "Base’s" : `${own}’s`} top 5`, ours, item)];
  panel.replaceChildren(
    make("h4", {}, make("code", { text: visible(item.text) }), make("span", { text: item.gated ? "decision point" : "" })),
    make("p", { class: "facts", text: facts.join(" · ") }),
    ...(ours.length || theirs ? tables : [make("p", { text: "The server sent no candidates." })]),
  );
  return `${item.gated ? "Decision point. " : ""}${own === "base" || theirs ? "Base's" : `${own}'s`} top five: ${inWords(theirs ?? ours)}`;
}
