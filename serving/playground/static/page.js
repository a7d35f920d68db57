// The page: who is asked what, and the columns the answers stream into.

import { keepKey, listModels, readKey } from "./api.js";
import { Column } from "./column.js";
import { make } from "./dom.js";
import { ServerTiles } from "./server.js";

const $ = (id) => document.getElementById(id);
const server = new ServerTiles(document.querySelector("footer"), showTau);
let models = { base: undefined, adapters: [] };
let running; // the AbortController of the streams under way

/** For those who hear the page: one short sentence an event, never one a token. */
const say = (text) => ($("status").textContent = text);

function complain(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

async function loadModels() {
  const chosen = new Set(chosenAdapters().map((adapter) => adapter.name));
  try {
    models = await listModels();
  } catch (error) {
    complain(error.message + (error.status === 401 ? " Put it into the field at the top and press Connect." : ""));
    if (error.status === 401) $("key").focus();
    return;
  }
  complain("");
  const known = models.adapters.some((adapter) => chosen.has(adapter.name));
  const first = models.adapters.find((adapter) => adapter.gated) ?? models.adapters[0];
  $("adapters").replaceChildren(
    ...models.adapters.map((adapter) => {
      const box = make("input", { type: "checkbox", name: "adapter", value: adapter.name });
      box.checked = known ? chosen.has(adapter.name) : adapter === first;
      return make("label", { class: "chip", title: adapter.version }, box, make("span", { text: adapter.name }));
    }),
    ...(models.adapters.length ? [] : [make("span", { class: "soft", text: "none in the store yet: only the base answers" })]),
  );
  say(`${models.adapters.length} adapters on base ${models.base}.`);
}

function chosenAdapters() {
  const names = new Set([...document.querySelectorAll('[name="adapter"]:checked')].map((box) => box.value));
  return models.adapters.filter((adapter) => names.has(adapter.name));
}

/** The threshold that an empty field stands for. */
function showTau() {
  const gate = chosenAdapters().find((adapter) => adapter.gated);
  const tau = gate && server.tau(gate.name);
  $("tau").placeholder = tau === undefined ? "auto" : tau.toFixed(2);
}

/** The columns for what is chosen, each with the arguments its request needs beside the common ones. */
function plan(tau) {
  const adapters = chosenAdapters();
  const common = { base: models.base, say };
  const gate = adapters.find((adapter) => adapter.gated);
  const threshold = (adapter) => tau ?? server.tau(adapter.name);
  const runs = [
    // A gate that never opens is the base token for token, and says the base's entropy as well.
    gate
      ? [{ kind: "base", model: `${gate.name}:gated`, title: models.base, exact: true, tau: threshold(gate) }, { gate_rate: 0, gate_trace: 2 }]
      : [{ kind: "base", model: models.base, title: models.base, exact: false }],
  ];
  for (const { name, version, gated } of adapters) {
    runs.push([{ kind: "always", model: name, title: name, version, exact: false }]);
    if (!gated) continue;
    const xargs = { gate_trace: 2, ...(tau !== undefined && { gate_tau: tau }) };
    const column = { kind: "gated", model: `${name}:gated`, title: `${name}:gated`, version, exact: true };
    runs.push([{ ...column, tau: threshold({ name }) }, xargs]);
  }
  return runs.map(([options, xargs]) => ({ column: new Column({ ...common, ...options }), xargs }));
}

const number = (id) => ($(id).value === "" ? undefined : $(id).valueAsNumber);

async function ask() {
  running?.abort();
  if (!models.base) await loadModels();
  if (!models.base) return;
  const temperature = number("temperature");
  const request = {
    messages: [{ role: "user", content: $("question").value }],
    temperature,
    max_tokens: number("max-tokens"),
    ...(temperature > 0 && { seed: number("seed") }),
  };
  const mine = (running = new AbortController());
  const runs = plan(number("tau"));
  $("answers").replaceChildren(...runs.map(({ column }) => column.element));
  $("answers").setAttribute("aria-busy", "true");
  $("stop").disabled = false;
  say(`Asking ${runs.length} models.`);
  await Promise.all(runs.map(({ column, xargs }) => column.run(request, xargs, mine.signal)));
  if (running !== mine) return; // asked again meanwhile
  running = undefined;
  $("answers").removeAttribute("aria-busy");
  if (document.activeElement === $("stop")) $("question").focus();
  $("stop").disabled = true;
  say(runs.map(({ column }) => column.outcome).join(" "));
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
});
$("stop").addEventListener("click", () => running?.abort());
$("adapters").addEventListener("change", showTau);
$("reload").addEventListener("click", loadModels);
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey($("key").value.trim());
  loadModels();
});

$("key").value = readKey();
loadModels();
server.start();
