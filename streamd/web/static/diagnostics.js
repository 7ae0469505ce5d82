// Log, configuration and support bundle of the daemon.

import { count, el, remembered, setText } from "./dom.js";

const POLL_MS = 2000;
const MAX_ROWS = 1000;
const LEVELS = { debug: 0, info: 1, warning: 2, error: 3, critical: 3 };
const ORDINARY = new Set(["event", "level", "timestamp", "exception"]);
const by = (id) => document.getElementById(id);
const rows = by("log");
let lines = []; // {level, text, node}
let boot = "";
let after = 0;
let timer = 0;
let paused = false;

document.documentElement.dataset.theme = remembered("theme", ["auto", "dark", "light"]);

function tell(text) {
  by("banner").hidden = !text;
  setText(by("banner"), text);
}

const value = (any) => (typeof any === "string" ? (/[\s"=]/.test(any) || !any ? JSON.stringify(any) : any) : JSON.stringify(any));

function row(event) {
  const level = LEVELS[event.level] ?? 1;
  const at = new Date(event.timestamp ?? NaN);
  const known = !Number.isNaN(at.getTime());
  const rest = Object.entries(event).filter(([key]) => !ORDINARY.has(key)).map(([key, each]) => `${key}=${value(each)}`);
  const text = el("span", { class: "text" }, el("b", { text: event.event ?? "" }), " ", el("span", { class: "rest", text: rest.join("  ") }));
  if (event.exception) text.append(el("pre", { text: event.exception }));
  const clock = el("time", known ? { datetime: event.timestamp, title: at.toLocaleString(), text: at.toLocaleTimeString(undefined, { hour12: false }) } : {});
  const node = el("li", { "data-level": level }, clock, el("span", { class: "level", text: event.level ?? "" }), text);
  return { level, text: [event.level, event.event, ...rest, event.exception ?? ""].join(" ").toLowerCase(), node };
}

function chosen() {
  const level = Number(by("level").value);
  const words = by("find").value.trim().toLowerCase();
  return lines.filter((line) => line.level >= level && line.text.includes(words));
}

function draw() {
  const follow = rows.scrollHeight - rows.scrollTop - rows.clientHeight < 40;
  const found = chosen();
  rows.replaceChildren(...found.map((line) => line.node));
  if (!found.length) rows.append(el("li", { class: "none", text: lines.length ? "No line matches." : "Nothing has been logged yet." }));
  setText(by("count"), found.length === lines.length ? `${count(lines.length)} lines` : `${count(found.length)} of ${count(lines.length)} lines`);
  if (follow) rows.scrollTop = rows.scrollHeight;
}

async function poll() {
  clearTimeout(timer);
  try {
    const answer = await fetch(`log?after=${after}`, { signal: AbortSignal.timeout(8000) });
    if (!answer.ok) throw new Error(`streamd responded with ${answer.status}`);
    const body = await answer.json();
    tell("");
    if (boot && body.boot_id !== boot) {
      // Another process, with numbers of its own.
      boot = body.boot_id;
      after = 0;
      return poll();
    }
    boot = body.boot_id;
    after = body.next;
    if (body.lines.length || !rows.firstChild) {
      lines = [...lines, ...body.lines.map(row)].slice(-MAX_ROWS);
      draw();
    }
  } catch (error) {
    tell("No response from streamd.");
    console.warn(error);
  }
  if (!paused && !document.hidden) timer = setTimeout(poll, POLL_MS);
}

async function config() {
  try {
    const answer = await fetch("config");
    setText(by("config"), await answer.text());
  } catch {
    setText(by("config"), "The configuration cannot be read.");
  }
}

async function bundle() {
  const button = by("bundle");
  const words = by("making").textContent;
  button.disabled = true;
  setText(by("making"), "being made…");
  try {
    const answer = await fetch("bundle");
    if (!answer.ok) throw new Error((await answer.text()).trim());
    const name = /filename="([^"]+)"/.exec(answer.headers.get("Content-Disposition") ?? "")?.[1] ?? "streamd.tar.gz";
    const address = URL.createObjectURL(await answer.blob());
    el("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
    tell("");
  } catch (error) {
    tell(`No bundle: ${error.message}`);
  }
  setText(by("making"), words);
  button.disabled = false;
}

by("level").addEventListener("change", draw);
by("find").addEventListener("input", draw);
by("bundle").addEventListener("click", bundle);
by("pause").addEventListener("click", () => {
  paused = !paused;
  by("pause").setAttribute("aria-pressed", String(paused));
  setText(by("pause"), paused ? "Go on" : "Pause");
  if (paused) clearTimeout(timer);
  else poll();
});
by("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(by("config").textContent);
    setText(by("copy"), "Copied");
  } catch {
    getSelection().selectAllChildren(by("config")); // without a certificate, browsers forbid the clipboard
    setText(by("copy"), "Selected");
  }
  setTimeout(() => setText(by("copy"), "Copy"), 2000);
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !paused) poll();
});
poll();
config();
