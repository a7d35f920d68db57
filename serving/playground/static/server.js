// The server's tiles at the foot of the page: a scrape every few seconds, a minute remembered.

import { readMetrics } from "./api.js";
import { DASH, milliseconds, percent, plain } from "./dom.js";
import { parse, tauOf, tiles } from "./metrics.js";

const EVERY = 3000; // ms
const REMEMBERED = 60_000; // ms

export class ServerTiles {
  /** `onScrape` is called after each scrape that came through. */
  constructor(root, onScrape) {
    this.onScrape = onScrape;
    this.root = root;
    this.scrapes = [];
    this.rates = [];
  }

  /** Scrape now and from now on, but not for a page nobody sees. */
  start() {
    this.#scrape();
    setInterval(() => document.hidden || this.#scrape(), EVERY);
  }

  /** The threshold in force for an adapter, as of the last scrape. */
  tau(adapter) {
    const now = this.scrapes.at(-1);
    return now && tauOf(now.samples, adapter);
  }

  async #scrape() {
    if (this.busy) return;
    this.busy = true;
    try {
      const samples = parse(await readMetrics(AbortSignal.timeout(EVERY)));
      this.scrapes.push({ at: performance.now(), samples });
      this.#show();
      this.onScrape();
    } catch {
      this.#write("freshness", "no metrics just now");
    } finally {
      this.busy = false;
    }
  }

  #show() {
    const now = this.scrapes.at(-1);
    this.scrapes = this.scrapes.filter((scrape) => now.at - scrape.at <= REMEMBERED);
    const [old, last] = [this.scrapes[0], this.scrapes.at(-2)];
    this.#write("freshness", `from /metrics, every ${EVERY / 1000} s`);
    if (!last) return;
    const values = tiles(now, last, old);
    const seconds = (value) => milliseconds(value === undefined ? undefined : 1000 * value);
    this.#tile("rate", plain(values.rate));
    this.#tile("gate", percent(values.gate));
    this.#tile("p50", seconds(values.p50));
    this.#tile("p95", seconds(values.p95));
    const { running, waiting } = values;
    this.#tile("load", running === undefined && waiting === undefined ? DASH : `${running ?? DASH}, ${waiting ?? DASH}`);
    this.rates.push({ at: now.at, rate: values.rate ?? 0 });
    this.rates = this.rates.filter(({ at }) => now.at - at <= REMEMBERED);
    this.#spark(now.at);
  }

  #spark(now) {
    const top = Math.max(1, ...this.rates.map(({ rate }) => rate));
    const points = this.rates.map(
      ({ at, rate }) => `${(120 * (1 - (now - at) / REMEMBERED)).toFixed(1)} ${(26 - (24 * rate) / top).toFixed(1)}`,
    );
    this.root.querySelector("#spark path").setAttribute("d", `M${points.join("L")}`);
  }

  #tile(name, text) {
    this.root.querySelector(`[data-tile="${name}"]`).textContent = text;
  }

  #write(id, text) {
    this.root.querySelector(`#${id}`).textContent = text;
  }
}
