// Elements, numbers and words. Text only becomes text nodes: nothing from a configuration is parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name === "text") node.textContent = value;
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Writes only changes: an unchanged element is neither laid out nor read out again.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
export function setAttribute(node, name, value) {
  if (value == null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

export const count = (n) => Math.round(n ?? 0).toLocaleString("en");
export const fps = (n) => (n == null ? "–" : n < 99.95 ? n.toFixed(1) : n.toFixed(0));
export const percent = (share) => (share == null ? "–" : share === 0 ? "0" : share < 0.001 ? "<0.1" : (share * 100).toFixed(share < 0.0995 ? 1 : 0));
export function milliseconds(seconds) {
  if (seconds == null) return "–";
  const ms = seconds * 1000;
  return ms < 9.95 ? ms.toFixed(1) : ms.toFixed(0);
}
// A number and its unit stay on one line.
export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s}\u00a0s`;
  if (s < 3600) return `${Math.floor(s / 60)}\u00a0min`;
  if (s < 86400) return `${Math.floor(s / 3600)}\u00a0h ${Math.floor((s % 3600) / 60)}\u00a0min`;
  return `${Math.floor(s / 86400)}\u00a0d ${Math.floor((s % 86400) / 3600)}\u00a0h`;
}

const REASONS = {
  dns: "Host name not found",
  refused: "Connection refused",
  unreachable: "No route to host",
  auth: "Login rejected",
  not_found: "Not found",
  permission: "No permission",
  unsupported: "Not supported",
  timeout_open: "No answer",
  timeout_read: "Went silent",
  rtcp_only: "Sends no video",
  no_video: "Contains no video",
  no_keyframe: "No key frame",
  corrupt: "Damaged data",
  clock_jump: "Clock jumped",
  codec_changed: "Codec changed",
  size_changed: "Picture size changed",
  decoder: "Decoder failed",
  decoder_crashed: "Decoder crashed",
  decoder_memory: "Decoder used too much memory",
  disconnected: "Connection lost",
  stuck: "Not responding",
  overload: "Overloaded",
  late: "Objective missed",
  behind: "Read too slowly",
  eof: "End of input",
  internal: "Internal error",
  worker_died: "Its worker process died",
};
// Why the network looks at a frame, or does not: docs/glance.md.
const WHYS = {
  motion: "something moves",
  light: "the light has changed",
  tracks: "an object moved",
  faint: "something may move",
  hold: "something moved a moment ago",
  interval: "a look now and then",
  learning: "learning what is usual",
  unreadable: "every frame: motion cannot be found",
  still: "nothing moves",
  rate: "max_fps is reached",
  busy: "other frames go first",
  overload: "too much moves for the network",
  followed: "tracked objects move",
};
export const whyText = (why) => WHYS[why] ?? why.replaceAll("_", " ");

export const reasonText = (reason) => REASONS[reason] ?? reason.replaceAll("_", " ");

const SILENT_S = 10;

// A camera's state for people: one of four kinds, a word, and a reason.
const HEALTH = {
  covered: "The camera is covered",
  dark: "The picture is dark",
  overexposed: "The picture is overexposed",
  blurred: "The picture is blurred",
  frozen: "The picture is frozen",
  moved: "The camera shows another scene",
  no_signal_picture: "The recorder has no signal",
};

const healthText = (state) => HEALTH[state] ?? state;

export function condition(stream, now) {
  const { state, reason } = stream;
  const told = reason ? reasonText(reason) : "";
  if (state === "FAILED") return { kind: "down", word: "Failed", reason: told };
  if (state === "BACKOFF") return { kind: "down", word: "Down", reason: told };
  // Between two attempts it still counts as down, or the tile would flicker.
  if (state === "CONNECTING" && stream.attempts) return { kind: "down", word: "Down", reason: "Trying again" };
  if (state === "CONNECTING") return { kind: "warn", word: "Connecting", reason: "" };
  // Only a source that is over says why; without a reason, streamd stopped it: a drain or a reload.
  if (state === "ENDED") return { kind: "over", word: reason === "eof" ? "Ended" : "Stopped", reason: "" };
  if (reason === "overload" || reason === "late" || reason === "behind") return { kind: "warn", word: "Degraded", reason: told };
  if (reason) return { kind: "warn", word: "Disturbed", reason: told };
  if (stream.camera_health?.length) return { kind: "warn", word: "Blind", reason: stream.camera_health.map(healthText).join(", ") };
  const age = now - (stream.last_frame || stream.since);
  if (age > SILENT_S) return { kind: "warn", word: "Silent", reason: `No frame for ${span(age)}` };
  return { kind: "live", word: "Live", reason: "" };
}

// What needs somebody comes first: cameras that are down, then degraded ones.
export const urgency = ({ kind, word }) => (kind === "down" ? 0 : word === "Degraded" || word === "Blind" ? 1 : kind === "over" ? 3 : 2);

const SHAPES = {
  live: ["circle", { cx: 6, cy: 6, r: 4 }],
  warn: ["path", { d: "M6 1.5 11 10.5H1z" }],
  down: ["rect", { x: 2, y: 2, width: 8, height: 8, rx: 1 }],
  over: ["circle", { cx: 6, cy: 6, r: 3.4, fill: "none", stroke: "currentColor", "stroke-width": 1.6 }],
};

// A state is shown by shape, word and colour, never by colour alone.
export function pill() {
  const node = el("span", { class: "pill" });
  return {
    node,
    set({ kind, word }) {
      if (node.dataset.kind === kind && node.dataset.word === word) return;
      Object.assign(node.dataset, { kind, word });
      const [shape, attributes] = SHAPES[kind];
      const mark = svg("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, svg(shape, { fill: "currentColor", ...attributes }));
      node.replaceChildren(mark, word);
    },
  };
}

// A choice that outlasts the page. Storage may be disabled; the choice then lasts as long as the page.
export function remembered(key, choices) {
  try {
    const value = localStorage.getItem(key);
    return choices.includes(value) ? value : choices[0];
  } catch {
    return choices[0];
  }
}
export function remember(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // as above
  }
}
