// Past events: filters, a timeline of what is listed, snapshots and clips.

import { el, remembered, setText, span, svg } from "./dom.js";

const PAGE = 100;
const BARS = 96;
const by = (id) => document.getElementById(id);
const list = by("list");
const more = by("more");
const banner = by("banner");
const player = by("player");
const shown = new Map(); // by event id
let next = null;

document.documentElement.dataset.theme = remembered("theme", ["auto", "dark", "light"]);

const clock = (seconds) => new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
const words = (type) => type.replace(/^(zone|line)_/, "").replaceAll("_", " ");

function tell(text) {
  banner.hidden = !text;
  setText(banner, text);
}

function asked() {
  const query = new URLSearchParams({ limit: PAGE });
  for (const id of ["stream", "rule", "label"]) if (by(id).value.trim()) query.set(id, by(id).value.trim());
  for (const id of ["since", "until"]) if (by(id).value) query.set(id, new Date(by(id).value).getTime() / 1000);
  return query;
}

// Rows of one event come newest first: its end before its begin.
function take(row) {
  const known = shown.get(row.id) ?? { id: row.id, media: {} };
  shown.set(row.id, known);
  known.media = { ...row.media, ...known.media };
  known.stream = row.stream;
  known.rule = row.rule ?? "";
  known.label = row.label ?? "";
  known.began = row.began_at;
  if (row.kind === "end") Object.assign(known, { ended: row.at, how: words(row.type) });
  if (row.kind === "begin" || row.kind === "instant") Object.assign(known, { type: words(row.type), direction: row.details.direction });
  if (row.kind === "instant") known.ended = row.at;
}

function open(event, role) {
  const media = event.media[role];
  const note = el("p", { class: "muted", text: `${event.stream} · ${clock(event.began)}` });
  const save = el("a", { href: `${media.url}?download`, text: "Download" });
  const close = el("button", { type: "button", class: "quiet", text: "Close" });
  close.addEventListener("click", () => player.close());
  let body;
  if (role.startsWith("clip")) {
    body = el("video", { src: media.url, controls: true, autoplay: true, playsinline: true });
    body.addEventListener("error", () => {
      body.replaceWith(el("p", { role: "status", text: "This browser cannot play the clip. Download it and open it in a video player." }));
    });
  } else {
    body = el("img", { src: media.url, alt: `Snapshot of ${event.label} at ${event.stream}` });
  }
  player.replaceChildren(body, el("div", { class: "row" }, note, save, close));
  player.showModal();
}
player.addEventListener("close", () => player.replaceChildren()); // ends the download

function picture(event) {
  const found = event.media.snapshot;
  if (found?.state !== "written") return el("div", { class: "shot", text: event.label || "–" });
  const button = el("button", { type: "button", class: "shot", "aria-label": "Show the snapshot" });
  button.append(el("img", { src: found.url, alt: "", loading: "lazy", width: 128, height: 72 }));
  button.addEventListener("click", () => open(event, "snapshot"));
  return button;
}

function acts(event) {
  const out = el("div", { class: "acts" });
  for (const role of Object.keys(event.media).filter((name) => /^clip(_\d+)?$/.test(name)).sort()) {
    const media = event.media[role];
    const part = role === "clip" ? "" : ` (part ${role.slice(5)})`;
    if (media.state === "written" && !media.name.endsWith(".mkv")) {
      const button = el("button", { type: "button", class: "quiet", text: `Play clip${part}` });
      button.addEventListener("click", () => open(event, role));
      out.append(button);
    } else if (media.state === "written") {
      out.append(el("a", { href: `${media.url}?download`, text: `Download clip${part}` }));
    } else if (media.state === "failed") {
      out.append(el("p", { class: "failed", text: `Clip failed: ${media.reason.replaceAll("_", " ")}` }));
    } else {
      out.append(el("p", { text: media.state === "pending" ? "Recording…" : "Clip removed" }));
    }
  }
  return out;
}

function item(event) {
  const what = [event.label, event.type ?? event.how, event.direction].filter(Boolean).join(" ");
  const lasted = event.ended == null ? "going on" : event.ended > event.began ? span(event.ended - event.began) : "";
  const where = [event.stream, event.rule].filter(Boolean).join(" · ");
  return el(
    "li",
    { class: "event" },
    picture(event),
    el("div", {}, el("h2", { text: what }), el("p", { text: where }), el("p", { text: [clock(event.began), lasted].filter(Boolean).join(" · ") })),
    acts(event),
  );
}

function timeline(events) {
  const node = by("timeline");
  node.hidden = events.length < 2;
  if (node.hidden) return;
  const first = Math.min(...events.map((event) => event.began));
  const last = Math.max(...events.map((event) => event.began));
  const counts = new Array(BARS).fill(0);
  for (const event of events) counts[Math.min(BARS - 1, Math.floor(((event.began - first) / (last - first || 1)) * BARS))] += 1;
  const top = Math.max(...counts);
  const bars = svg("svg", { viewBox: `0 0 ${BARS} 40`, preserveAspectRatio: "none", role: "img", "aria-label": `${events.length} events between ${clock(first)} and ${clock(last)}` });
  counts.forEach((n, x) => {
    if (n) bars.append(svg("rect", { x: x + 0.1, width: 0.8, y: 40 - (n / top) * 40, height: (n / top) * 40 }));
  });
  node.replaceChildren(bars, el("p", {}, el("span", { text: clock(first) }), el("span", { text: clock(last) })));
}

function draw() {
  const events = [...shown.values()].sort((a, b) => b.began - a.began);
  list.replaceChildren(...events.map(item));
  by("empty").hidden = events.length > 0;
  more.hidden = next == null;
  timeline(events);
}

async function load(older) {
  const query = asked();
  if (older) query.set("before", next);
  else shown.clear();
  try {
    const answer = await fetch(`events?${query}`);
    if (!answer.ok) throw new Error((await answer.text()).trim());
    const body = await answer.json();
    next = body.next;
    body.events.forEach(take);
    tell("");
  } catch (error) {
    tell(`Events cannot be read: ${error.message}`);
  }
  draw();
}

async function cameras() {
  try {
    const state = await (await fetch("state")).json();
    by("stream").append(...state.streams.map((stream) => el("option", { value: stream.stream, text: stream.stream })));
  } catch {
    // The list works without the names.
  }
}

by("filters").addEventListener("submit", (event) => {
  event.preventDefault();
  load(false);
});
more.addEventListener("click", () => load(true));
cameras();
load(false);
