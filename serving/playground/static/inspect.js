// What stood behind one token: the base's five best, and where the gate opened the corrected five.

import { tokenText } from "./api.js";
import { make, nats, percent, visible } from "./dom.js";

const SHOWN = 5;

/** [{text, p, taken}] of an answer's own logprobs, best first. */
function ownTop(item) {
  return [...item.top]
    .sort((a, b) => b.logprob - a.logprob)
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

function bar(p, kind) {
  const element = make("span", { class: `bar ${kind}`, "aria-hidden": "true" });
  element.style.setProperty("--share", `${(100 * (p ?? 0)).toFixed(1)}%`);
  return element;
}

/** One row a candidate; `corrected`, where given, stands beside `rows` in a second column. */
function table(caption, rows, corrected, item) {
  const after = corrected && new Map(corrected.map(({ text, p }) => [text, p]));
  const taken = { text: item.text, taken: true, outside: true };
  const body = make("tbody");
  for (const row of rows.some((each) => each.taken) ? rows : [...rows, taken]) {
    const bars = row.outside ? [make("span", { class: "soft", text: "beyond the five" })] : [bar(row.p, "first")];
    if (after) bars.push(bar(after.get(row.text), "corrected"));
    body.append(
      make(
        "tr",
        { class: row.taken && "taken", "data-p": row.p },
        make("th", { scope: "row" }, make("code", { text: visible(row.text) })),
        make("td", { class: "share" }, ...bars),
        make("td", { class: "figure", text: percent(row.p) }),
        ...(after ? [make("td", { class: "figure corrected", text: percent(after.get(row.text)) })] : []),
        make("td", { class: "mark", text: row.taken ? "✓ taken" : "" }),
      ),
    );
  }
  const head = make("tr");
  const titles = [[caption, "name"], ["Share"], [after ? "base" : "probability", after ? "figure" : undefined]];
  if (after) titles.push(["corrected", "figure corrected"]);
  titles.push(["Taken"]);
  for (const [text, kind] of titles) {
    head.append(make("th", { scope: "col", class: kind }, make("span", { class: kind ? undefined : "hidden", text })));
  }
  return make("table", { "aria-label": caption }, make("thead", {}, head), body);
}

const inWords = (rows) => rows.map((row) => `${visible(row.text)} ${percent(row.p)}${row.taken ? ", taken" : ""}`).join("; ");

/**
 * Fill `panel` with one token's candidates; returns the same in a sentence.
 *
 * `own`: whose distribution the answer's own logprobs are at an ungated token ("the base", "alpha").
 */
export async function inspect(panel, item, { base, own, exact, tau, isCurrent }) {
  const ours = ownTop(item);
  const best = ours.slice(0, SHOWN);
  const theirs = item.gated && item.baseTop ? await baseTop(item, base) : undefined;
  if (!isCurrent()) return "";
  const facts = [`position ${item.position}`];
  if (item.entropy !== undefined) facts.push(`entropy ${exact ? "" : "about "}${nats(item.entropy)}`);
  if (item.gated) facts.push(item.rank ? `base rank ${item.rank}` : "base rank beyond 20");
  else if (exact && tau !== undefined) facts.push(item.entropy > tau ? "above tau, gate held shut" : "gate shut");
  const caption = own === "base" || theirs ? "Base’s top 5" : `${own}’s top 5`;
  panel.replaceChildren(
    make("h4", {}, make("code", { text: visible(item.text) }), ...(item.gated ? [make("span", { text: "decision point" })] : []), make("span", { class: "facts", text: facts.join(" · ") })),
    ours.length || theirs
      ? table(caption, theirs ?? best, theirs && ours, item)
      : make("p", { text: "The server sent no candidates." }),
  );
  return `${item.gated ? "Decision point. " : ""}${caption}: ${inWords(theirs ?? best)}`;
}
