// The server's public API as the page needs it: models, streamed answers, token texts, metrics.
// The key lives in sessionStorage alone and goes nowhere but into the Authorization header.

const KEY = "reasonmaxxer-api-key";
const GATED = ":gated";

/** What the server said no with; `status` is 0 where it could not be reached. */
export class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const readKey = () => sessionStorage.getItem(KEY) ?? "";
export const keepKey = (key) =>
  key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY);

async function call(path, body, signal) {
  const headers = {};
  if (readKey()) headers.Authorization = `Bearer ${readKey()}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      body: body && JSON.stringify(body),
      headers,
      signal,
      credentials: "omit",
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server cannot be reached.", 0);
  }
  if (!response.ok) throw new Refusal(await reason(response), response.status);
  return response;
}

async function reason(response) {
  const text = await response.text().catch(() => "");
  try {
    const body = JSON.parse(text);
    return String(body.error?.message ?? body.message ?? body.detail);
  } catch {
    return text.slice(0, 500) || `HTTP ${response.status}`;
  }
}

/** {base, adapters: [{name, version, gated}]} from GET /v1/models. */
export async function listModels() {
  const { data } = await (await call("v1/models")).json();
  const ids = new Set(data.map((card) => card.id));
  const adapters = data
    .filter((card) => card.parent && !(card.id.endsWith(GATED) && ids.has(card.id.slice(0, -GATED.length))))
    .map((card) => ({ name: card.id, version: card.root, gated: ids.has(card.id + GATED) }));
  return { base: data.find((card) => !card.parent)?.id, adapters };
}

/** The chunks of a streamed chat completion; throws Refusal, also for an error mid-stream. */
export async function* stream(request, signal) {
  const body = { ...request, stream: true, stream_options: { include_usage: true } };
  const response = await call("v1/chat/completions", body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new Refusal("The connection to the server broke off.", 0);
    });
    buffer += value ?? "";
    const lines = buffer.split("\n");
    buffer = lines.pop();
    for (const line of lines) {
      const data = line.startsWith("data:") ? line.slice(5).trim() : "";
      if (!data) continue;
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refusal(String(chunk.error.message), chunk.error.code ?? 500);
      yield chunk;
    }
    if (done) throw new Refusal("The answer broke off before its end.", 0);
  }
}

const texts = new Map(); // "model id" -> promise of its text

/** A token's text by its id; "#id" where the server does not say. */
export function tokenText(model, id) {
  const name = `${model} ${id}`;
  if (!texts.has(name)) {
    const asked = call("detokenize", { model, tokens: [id] })
      .then((response) => response.json())
      .then((body) => String(body.prompt))
      .catch(() => {
        texts.delete(name); // asked again at the next click
        return `#${id}`;
      });
    texts.set(name, asked);
  }
  return texts.get(name);
}

/** The text of GET /metrics. */
export const readMetrics = async (signal) => (await call("metrics", undefined, signal)).text();
