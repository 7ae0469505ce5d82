// Selects the view, fetches the state once a second, and shows what concerns all cameras.

import { Camera } from "./camera.js";
import { condition, count, el, fps, milliseconds, remember, remembered, setText, span } from "./dom.js";
import { History } from "./history.js";
import { Wall } from "./wall.js";

const POLL_MS = 1000;
const POLL_HIDDEN_MS = 10000;
const main = document.getElementById("main");
const banner = document.getElementById("banner");
const news = document.getElementById("news");
const foot = document.getElementById("foot");
const history = new History();
let view = null;
let state = null;
let skew = 0; // the daemon's clock minus ours, seconds
let timer = 0;
let rules = { revision: null, of: {} }; // zones and lines by camera
const trouble = { network: "", stopping: "", daemon: "", pictures: "" };
const known = new Map();

const now = () => Date.now() / 1000 + skew;

function tellTrouble(kind, text) {
  trouble[kind] = text;
  const words = trouble.network || trouble.stopping || trouble.daemon || trouble.pictures;
  banner.hidden = !words;
  setText(banner, words);
}

function route() {
  const name = decodeURIComponent(location.hash.replace(/^#\/?/, ""));
  if (name === "main") return; // the skip link
  const from = view instanceof Camera ? view.name : "";
  view?.close();
  const first = view === null;
  view = name ? new Camera(name, (text) => tellTrouble("pictures", text)) : new Wall((text) => tellTrouble("pictures", text));
  tellTrouble("pictures", "");
  main.replaceChildren(view.node);
  view.setRules(rules.of);
  if (state) view.update(state, history, now());
  showTitle();
  if (document.hidden) view.pause();
  if (from && !name) view.focusOn(from);
  else if (!first) {
    window.scrollTo(0, 0);
    (view.title ?? main).focus({ preventScroll: true }); // so that a screen reader starts at the title
  }
}

// A tab in the background shows what is down, too.
function showTitle() {
  const down = (state?.streams ?? []).filter((stream) => condition(stream, now()).kind === "down").map((stream) => stream.stream);
  const told = down.length > 2 ? `${count(down.length)} down` : down.length ? `${down.join(", ")} down` : "";
  document.title = [told, view instanceof Camera ? view.name : "", "streamd"].filter(Boolean).join(" · ");
}

const totals = (() => {
  const cells = {};
  for (const [key, word, unit] of [["live", "live", ""], ["down", "down", ""], ["degraded", "degraded", ""], ["fps", "frames/s", ""], ["latency", "latency p95", " ms"]]) {
    const value = el("b", { text: "–" });
    // On a phone, all five have one line: what is long has a short form there.
    const short = { fps: "fps", latency: "p95" }[key];
    const name = short ? [el("span", { class: "long", text: word }), el("span", { class: "short", text: short })] : [word];
    cells[key] = { value, node: el("div", { class: key }, el("dt", {}, ...name), el("dd", {}, value, unit)) };
    document.getElementById("totals").append(cells[key].node);
  }
  return cells;
})();

function showTotals() {
  const conditions = state.streams.map((stream) => condition(stream, now()));
  const kinds = conditions.map(({ kind }) => kind);
  const degraded = conditions.filter(({ word }) => word === "Degraded").length;
  setText(totals.degraded.value, count(degraded));
  totals.degraded.node.hidden = !degraded;
  totals.degraded.node.classList.toggle("warning", degraded > 0);
  const down = kinds.filter((kind) => kind === "down").length;
  setText(totals.live.value, count(kinds.filter((kind) => kind === "live" || kind === "warn").length));
  setText(totals.down.value, count(down));
  totals.down.node.classList.toggle("alarm", down > 0);
  const rates = state.streams.map((stream) => history.fps(stream.stream));
  setText(totals.fps.value, rates.some((rate) => rate != null) ? fps(rates.reduce((sum, rate) => sum + (rate ?? 0), 0)) : "–");
  const worst = state.streams.map((stream) => history.quantile(0.95, stream.stream)).filter((value) => value != null);
  setText(totals.latency.value, worst.length ? milliseconds(Math.max(...worst)) : "–");
  totals.latency.node.title = "95th percentile of the last minute, of the slowest camera";
  setText(foot, `${state.model} · ${state.backend} · streamd ${state.version}`);
}

// Read out each change to and from down and degraded once; the first state of a camera is not announced.
function tellNews() {
  const words = [];
  for (const stream of state.streams) {
    const { kind: general, word, reason } = condition(stream, now());
    const kind = word === "Degraded" ? "degraded" : general;
    const before = known.get(stream.stream);
    known.set(stream.stream, kind);
    if (before && before !== kind && [kind, before].some((each) => each === "down" || each === "degraded")) words.push(`${stream.stream}: ${word}${reason ? `, ${reason}` : ""}`);
  }
  if (words.length) news.textContent = words.length > 3 ? `${words.length} cameras changed` : words.join(". ");
}

async function fetchRules(revision) {
  const answer = await fetch("rules", { signal: AbortSignal.timeout(8000) });
  if (!answer.ok) return; // asked for again with the next state
  rules = { revision, of: await answer.json() };
  view.setRules(rules.of);
}

async function poll() {
  clearTimeout(timer);
  const began = Date.now();
  try {
    const answer = await fetch("state", { signal: AbortSignal.timeout(8000) });
    if (!answer.ok) throw new Error(`streamd responded with ${answer.status}`);
    state = await answer.json();
    skew = state.now - Date.now() / 1000;
    history.add(state);
    tellTrouble("network", "");
    const stopped = state.streams.length > 0 && state.streams.every((stream) => condition(stream, now()).word === "Stopped");
    tellTrouble("stopping", stopped ? "streamd is shutting down." : "");
    tellTrouble("daemon", state.problems.join(" "));
    tellNews();
    showTotals();
    showTitle();
    view.update(state, history, now());
    if (state.rules !== rules.revision) await fetchRules(state.rules);
  } catch (error) {
    const old = state ? ` The data shown is ${span(now() - state.now)} old.` : "";
    tellTrouble("network", `No response from streamd.${old}`);
    console.warn(error);
  }
  document.body.dataset.stale = String(Boolean(trouble.network));
  timer = setTimeout(poll, Math.max(50, (document.hidden ? POLL_HIDDEN_MS : POLL_MS) - (Date.now() - began)));
}

// Nobody sees a hidden tab, so no pictures are requested for it.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) view.pause();
  else {
    view.resume();
    poll();
  }
});

addEventListener("hashchange", route);
addEventListener("keydown", (event) => {
  const typing = event.target instanceof Element && event.target.closest("input, textarea, select, svg.scene, .editor");
  if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || typing) return;
  if (event.key === "f") view.fullscreen();
  else if (!(view instanceof Camera)) return;
  else if (event.key === "Escape") location.hash = "#/";
  else if (event.key === "ArrowLeft") view.step(view.before);
  else if (event.key === "ArrowRight") view.step(view.after);
});

const THEMES = ["auto", "dark", "light"];
const button = document.getElementById("theme");
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  setText(button, `Theme: ${theme}`);
  remember("theme", theme);
}
button.addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]));
setTheme(remembered("theme", THEMES));

route();
poll();
