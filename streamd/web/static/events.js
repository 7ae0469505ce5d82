// Past events: filters, a timeline of what is listed, cards with snapshots, and a player for clips.

import { count, el, remembered, setText, span, svg } from "./dom.js";
import { Filters } from "./filters.js";
import { Player } from "./player.js";
import { colorOf } from "./pictures.js";
import { Timeline } from "./timeline.js";

const PAGE = 500;
const CARDS = 60; // are added at a time, when the end of the list comes into view
const POLL_MS = 5000;
const by = (id) => document.getElementById(id);
const list = by("list");
const more = by("more");
const shown = new Map(); // by event id
let sorted = []; // the newest first
let drawn = 0; // how many of them have cards
const cards = new Map(); // by event id: {node, button, told}
const days = new Map(); // by name: {section, list}
let next = null; // position of the next older page
let newest = 0; // highest position seen
let generation = 0; // of the question: a late answer to another one is dropped
let loading = false;
let timer = 0;

document.documentElement.dataset.theme = remembered("theme", ["auto", "dark", "light"]);

const words = (type) => type.replace(/^(zone|line)_/, "").replaceAll("_", " ");
const date = (seconds) => new Date(seconds * 1000).toLocaleDateString(undefined, { weekday: "long", day: "numeric", month: "long", year: "numeric" });
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString(undefined, { hour12: false });

function tell(text) {
  by("banner").hidden = !text;
  setText(by("banner"), text);
}

// Rows of one event come in any order: what the begin says and what the end says do not exclude each other.
function take(row) {
  const known = shown.get(row.id) ?? { id: row.id, media: {}, at: 0, label: "", rule: "" };
  shown.set(row.id, known);
  newest = Math.max(newest, row.position);
  known.media = row.at >= known.at ? { ...known.media, ...row.media } : { ...row.media, ...known.media };
  known.at = Math.max(known.at, row.at);
  known.stream = row.stream;
  known.rule = row.rule || known.rule;
  known.label = row.label || known.label;
  known.began = row.began_at;
  if (row.kind === "end") Object.assign(known, { ended: row.at, lasted: row.details.dwell_s ?? row.at - row.began_at });
  if (row.kind === "end" && !known.type) known.type = words(row.type);
  if (row.kind === "begin" || row.kind === "instant") Object.assign(known, { type: words(row.type), direction: row.details.direction });
  if (row.kind === "instant") known.ended = row.at;
  known.title = [known.label, known.type, known.direction].filter(Boolean).join(" ") || "event";
  known.clock = clock(known.began);
  known.day = date(known.began);
  known.clips = Object.keys(known.media).filter((role) => /^clip(_\d+)?$/.test(role)).sort();
}

const reason = (media) => media.reason.replaceAll("_", " ");
const written = (event, role) => event.media[role]?.state === "written";

// What a card shows of an event.
function content(event) {
  const shot = el("span", { class: "shot" });
  if (written(event, "snapshot")) shot.append(el("img", { src: event.media.snapshot.url, alt: "", loading: "lazy", decoding: "async" }));
  else shot.append(event.media.snapshot?.state === "pending" ? "Picture follows" : "No picture");
  const states = event.clips.map((role) => event.media[role]);
  const failed = states.find((media) => media.state === "failed");
  const lasted = event.ended == null ? "going on" : event.lasted >= 0.5 ? span(event.lasted) : "";
  if (states.some((media) => media.state === "written")) {
    shot.append(el("span", { class: "tag" }, svg("svg", { viewBox: "0 0 9 10", "aria-hidden": "true" }, svg("path", { d: "M0 0 9 5 0 10z" })), "Clip"));
  } else if (failed) shot.append(el("span", { class: "tag bad", title: reason(failed), text: "Clip failed" }, el("span", { class: "unseen", text: `: ${reason(failed)}` })));
  else if (states.some((media) => media.state === "pending")) shot.append(el("span", { class: "tag", text: "Recording…" }));
  else if (states.length) shot.append(el("span", { class: "tag", text: "Clip removed" }));
  const mark = svg("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, svg("rect", { width: 10, height: 10, rx: 2, fill: colorOf(event.label) }));
  const where = [event.stream, event.rule].filter(Boolean).join(" · ");
  const what = el(
    "span",
    { class: "what" },
    el("span", { class: "name" }, mark, event.title),
    el("span", { class: "line" }, el("span", { text: where, title: where })),
    el("span", { class: "line" }, el("span", { text: [event.clock, lasted].filter(Boolean).join(" · ") })),
  );
  return [shot, what];
}

// The event's card. It stays the same element for as long as it is listed: one that is replaced while somebody presses
// it is never clicked, and the list would jump under who has scrolled down.
function card(event) {
  let one = cards.get(event.id);
  if (!one) {
    const button = el("button", { type: "button", "data-id": event.id });
    one = { button, node: el("li", { class: "event" }, button) };
    cards.set(event.id, one);
  }
  const told = JSON.stringify([event.title, event.rule, event.clock, event.ended, event.lasted, event.media]);
  if (one.told !== told) {
    one.told = told;
    one.button.replaceChildren(...content(event));
    one.button.disabled = !written(event, "snapshot") && !event.clips.some((role) => written(event, role));
  }
  return one.node;
}

function section(name) {
  if (!days.has(name)) {
    const list = el("ul", { role: "list" });
    days.set(name, { list, section: el("section", { class: "day", "aria-label": name }, el("h2", { text: name }), list) });
  }
  return days.get(name);
}

// Makes `nodes` the children, and touches only those that are not there yet.
function place(parent, nodes) {
  const wanted = new Set(nodes);
  for (const node of [...parent.children]) if (!wanted.has(node)) node.remove();
  nodes.forEach((node, at) => node !== parent.children[at] && parent.insertBefore(node, parent.children[at] ?? null));
}

// Adds cards of the next events, so that there are at least `wanted`.
function grow(wanted) {
  drawn = Math.min(sorted.length, Math.max(wanted, drawn));
  const groups = new Map();
  for (const event of sorted.slice(0, drawn)) {
    if (!groups.has(event.day)) groups.set(event.day, []);
    groups.get(event.day).push(card(event));
  }
  place(list, [...groups.keys()].map((name) => section(name).section));
  for (const [name, nodes] of groups) place(section(name).list, nodes);
  more.hidden = drawn === sorted.length && next == null;
  // Tells again where the end is: it may still be in view.
  end.unobserve(more);
  end.observe(more);
}

// Lists what there is now, to the event that was the last with a card at least.
function draw(keep = CARDS) {
  const last = sorted[drawn - 1];
  const focused = document.activeElement?.dataset?.id;
  sorted = [...shown.values()].sort((a, b) => b.began - a.began || (a.id < b.id ? 1 : -1));
  for (const id of cards.keys()) if (!shown.has(id)) cards.delete(id);
  drawn = 0;
  grow(Math.max(keep, sorted.indexOf(last) + 1));
  if (focused && document.activeElement?.dataset?.id !== focused) button(focused)?.focus({ preventScroll: true });
  by("empty").hidden = sorted.length > 0;
  setText(by("empty"), filters.any ? "No events match these filters." : "No events yet.");
  const clips = sorted.filter((event) => event.clips.some((role) => written(event, role))).length;
  setText(by("status"), sorted.length ? `${count(sorted.length)}${next == null ? "" : " newest"} event${sorted.length === 1 ? "" : "s"}, ${count(clips)} with a clip` : "");
  timeline.update(sorted);
  filters.offer(sorted);
  player.refresh(sorted);
}

const button = (id) => list.querySelector(`button[data-id="${CSS.escape(id)}"]`);

async function ask(query) {
  const answer = await fetch(`events?${query}`, { signal: AbortSignal.timeout(20_000) });
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

async function load(older) {
  if (older && loading) return;
  const mine = older ? generation : (generation += 1);
  const query = filters.query({ limit: PAGE });
  if (older) query.set("before", next);
  loading = true;
  try {
    const body = await ask(query);
    if (mine !== generation) return;
    if (!older) {
      shown.clear();
      newest = 0;
    }
    next = body.next;
    body.events.forEach(take);
    tell("");
    draw(older ? drawn + CARDS : CARDS);
  } catch (error) {
    if (mine === generation) tell(`Events cannot be read: ${error.message}`);
  }
  if (mine === generation) loading = false;
}

// What is new, and what has become of files that were not finished.
async function poll() {
  clearTimeout(timer);
  const mine = generation;
  try {
    if (!loading && !filters.past) {
      const fresh = filters.query({ limit: PAGE, order: "oldest", after: newest });
      const pending = sorted.slice(0, 200).filter((event) => event.ended == null || Object.values(event.media).some((media) => media.state === "pending"));
      const answers = [await ask(fresh)];
      if (pending.length) answers.push(await ask(new URLSearchParams({ limit: PAGE, id: pending.slice(0, 50).map((event) => event.id).join(",") })));
      if (mine === generation) {
        const before = JSON.stringify(pending.map((event) => event.media));
        answers.flatMap((body) => body.events).forEach(take);
        if (answers[0].events.length || JSON.stringify(pending.map((event) => event.media)) !== before) draw(drawn);
        tell("");
      }
    }
  } catch (error) {
    if (mine === generation) tell(`Events cannot be read: ${error.message}`);
  }
  if (!document.hidden) timer = setTimeout(poll, POLL_MS);
}

function reach() {
  if (drawn < sorted.length) grow(drawn + CARDS);
  else if (next != null) load(true);
}

// Shows the newest event that is not newer than this time.
function jump(seconds) {
  const at = sorted.findIndex((event) => event.began <= seconds);
  if (at < 0) return;
  grow(at + CARDS);
  const found = button(sorted[at].id);
  found.focus({ preventScroll: true });
  found.scrollIntoView({ block: "center" });
}

function columns() {
  const first = list.querySelector(".day ul");
  return first ? getComputedStyle(first).gridTemplateColumns.split(" ").length : 1;
}

list.addEventListener("click", (event) => {
  const id = event.target.closest("button[data-id]")?.dataset.id;
  if (id) player.open(sorted.findIndex((each) => each.id === id), sorted);
});
list.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() }[event.key];
  const at = sorted.findIndex((each) => each.id === event.target.dataset?.id);
  if (!step || at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const to = Math.max(0, Math.min(sorted.length - 1, at + step));
  if (to >= drawn) grow(to + CARDS);
  const found = button(sorted[to].id);
  found.disabled = false; // so that the keys can pass it
  found.focus({ preventScroll: true });
  found.scrollIntoView({ block: "nearest" });
});

const filters = new Filters(by("filters"), () => load(false));
const timeline = new Timeline(by("timeline"), jump);
const player = new Player(by("player"), (event) => {
  grow(sorted.indexOf(event) + 1);
  button(event.id)?.focus();
});
more.addEventListener("click", reach);
const end = new IntersectionObserver((seen) => seen.some((each) => each.isIntersecting) && reach(), { rootMargin: "600px" });
document.addEventListener("visibilitychange", () => !document.hidden && poll());
load(false);
filters.load();
timer = setTimeout(poll, POLL_MS);
