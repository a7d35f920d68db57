// The server's own tiles: Prometheus text in, rates and quantiles between two scrapes out.

const SERIES = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const OURS = /^(reasonmaxxer_|vllm:(generation_tokens|num_requests|time_to_first_token))/;

/** [{name, labels, value}] of the series the page looks at. */
export function parse(page) {
  const samples = [];
  for (const line of page.split("\n")) {
    if (!OURS.test(line)) continue;
    const found = SERIES.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, key, value] of (found[2] ?? "").matchAll(LABEL)) labels[key] = value;
    samples.push({ name: found[1], labels, value: Number(found[3]) });
  }
  return samples;
}

/** Sum over all series of a name whose labels agree with `labels`; undefined where there is none. */
export function total(samples, name, labels = {}) {
  const wanted = Object.entries(labels);
  const found = samples.filter(
    (sample) => sample.name === name && wanted.every(([key, value]) => sample.labels[key] === value),
  );
  return found.length ? found.reduce((sum, sample) => sum + sample.value, 0) : undefined;
}

/** By how much a counter grew; a series that is new began at 0, one that fell was started anew. */
function growth(before, now, name, labels) {
  const end = total(now, name, labels);
  if (end === undefined) return undefined;
  const start = total(before, name, labels) ?? 0;
  return end >= start ? end - start : end;
}

/** Quantile `q` of what a histogram saw between two scrapes, interpolated within its bucket. */
export function quantile(before, now, name, q) {
  const bounds = [...new Set(now.filter((s) => s.name === `${name}_bucket`).map((s) => s.labels.le))];
  const buckets = bounds
    .map((le) => ({ le: le === "+Inf" ? Infinity : Number(le), count: growth(before, now, `${name}_bucket`, { le }) }))
    .sort((a, b) => a.le - b.le);
  const all = buckets.at(-1)?.count;
  if (!all) return undefined;
  const at = buckets.findIndex((bucket) => bucket.count >= q * all);
  const [low, below] = at > 0 ? [buckets[at - 1].le, buckets[at - 1].count] : [0, 0];
  const { le, count } = buckets[at];
  return le === Infinity ? low : low + ((le - low) * (q * all - below)) / (count - below || 1);
}

const either = (...values) => values.find((value) => value !== undefined);

/** The tiles' values from the last scrape, the one before it and one about a minute old. */
export function tiles(now, last, old) {
  const seconds = (now.at - last.at) / 1000;
  const of = (from, name, labels) => growth(from.samples, now.samples, name, labels);
  const tokens = either(
    of(last, "reasonmaxxer_generated_tokens_total"),
    of(last, "vllm:generation_tokens_total"),
  );
  const gated = of(old, "reasonmaxxer_gated_tokens_total");
  const generated = either(
    of(old, "reasonmaxxer_generated_tokens_total", { mode: "gated" }),
    of(old, "reasonmaxxer_generated_tokens_total"),
  );
  const first = (q) =>
    either(
      quantile(old.samples, now.samples, "reasonmaxxer_time_to_first_token_seconds", q),
      quantile(old.samples, now.samples, "vllm:time_to_first_token_seconds", q),
    );
  const waiting = [
    total(now.samples, "vllm:num_requests_waiting"),
    total(now.samples, "reasonmaxxer_queue_requests"),
  ].filter((value) => value !== undefined);
  return {
    rate: seconds > 0 && tokens !== undefined ? tokens / seconds : undefined,
    gate: generated && gated !== undefined ? gated / generated : undefined,
    p50: first(0.5),
    p95: first(0.95),
    running: total(now.samples, "vllm:num_requests_running"),
    waiting: waiting.length ? waiting.reduce((a, b) => a + b, 0) : undefined,
  };
}

/** The threshold in force for an adapter's gated name, in nats, if the server says. */
export const tauOf = (samples, adapter) =>
  samples.findLast((s) => s.name === "reasonmaxxer_adapter_tau_nats" && s.labels.adapter === adapter)?.value;
