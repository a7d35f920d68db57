// Elements and numbers. All text goes in by textContent: nothing from a server or user is markup.

/** An element: attributes, `class`, `text`, and children. */
export function make(tag, { text, ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

export const DASH = "–";
const or = (write) => (value) => (value === undefined || Number.isNaN(value) ? DASH : write(value));

export const percent = or((share) => share > 0 && share < 0.001 ? "<0.1 %" : `${(100 * share).toFixed(share && share < 0.1 ? 1 : 0)} %`);
export const milliseconds = or((ms) => (ms < 9950 ? `${ms < 9.95 ? ms.toFixed(1) : Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`));
export const plain = or((value) => (value < 9.95 ? value.toFixed(1) : String(Math.round(value))));
export const nats = or((value) => `${value.toFixed(2)} nats`);

/** A token's text with its white space made visible. */
export const visible = (text) =>
  text === "" ? "(nothing)" : text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ +| +$/g, (s) => "␣".repeat(s.length));

/** A token's text in words, for those who hear it. */
export const spoken = (text) =>
  text === "" ? "nothing" : text.trim() ? text.trim() : text.includes("\n") ? "line break" : "space";
