// One camera: its picture, its latency by stage, its counters.

import { Counts } from "./counts.js";
import { condition, count, el, fps, milliseconds, percent, pill, setAttribute, setText, span, svg, whyText } from "./dom.js";
import { Editor } from "./editor.js";
import { path } from "./history.js";
import { colorOf, Pictures, Shot, told } from "./pictures.js";

const STAGES = [
  ["decode", "Decode"],
  ["queue", "Queue"],
  ["preprocess", "Preprocess"],
  ["infer", "Infer"],
  ["postprocess", "Postprocess"],
];
const SAMPLES = 100;
const BEHIND_S = 0.5; // less is jitter
const CALM = matchMedia("(prefers-reduced-motion: reduce)");
const DROPS = {
  ring_full: "engine too slow",
  too_old: "waited too long",
  behind: "left out to catch up",
  quarantine: "damaged pictures",
  frame_error: "could not be processed",
  stage_failed: "engine failed",
  shutdown: "shutdown",
};

// Why it looked, or did not: one reason, or the two most frequent ones with their shares.
function lately(now) {
  if (now.length === 1) return whyText(now[0][0]);
  return now.slice(0, 2).map(([why, share]) => `${whyText(why)}: ${percent(share)}\u00a0%`).join(", ") || "–";
}

function card(title, ...children) {
  return el("section", { class: "card", "aria-label": title }, el("h2", { text: title }), ...children);
}

class Facts {
  constructor() {
    this.node = el("dl", { class: "facts" });
    this.rows = new Map();
  }

  set(rows) {
    for (const [name, row] of this.rows) {
      if (rows.some(([other]) => other === name)) continue;
      row.node.remove();
      this.rows.delete(name);
    }
    for (const [name, value] of rows) {
      let row = this.rows.get(name);
      if (!row) {
        const cell = el("dd");
        row = { cell, node: el("div", {}, el("dt", { text: name }), cell) };
        this.rows.set(name, row);
        this.node.append(row.node);
      }
      setText(row.cell, value);
    }
  }
}

class LatencyChart {
  constructor() {
    this.line = svg("path", { class: "mean" });
    const grid = [0, 0.5, 1].map((y) => svg("path", { class: "grid", d: `M0 ${140 * y}H600` }));
    const chart = svg("svg", { viewBox: "0 0 600 140", preserveAspectRatio: "none", "aria-hidden": "true" }, ...grid, this.line);
    this.top = el("span");
    this.middle = el("span");
    const scale = el("div", { class: "scale", "aria-hidden": "true" }, this.top, this.middle, el("span", { text: "0" }));
    this.quantiles = ["50", "95", "99"].map((share) => [Number(share) / 100, el("b", { text: "–" }), share]);
    const numbers = el(
      "p",
      { class: "quantiles" },
      ...this.quantiles.map(([, value, share]) => el("span", {}, el("i", { text: `p${share}` }), value, " ms")),
    );
    const ends = el("p", { class: "ends", "aria-hidden": "true" }, el("span", { text: "60 s ago" }), el("span", { text: "now" }));
    this.node = card("Capture to publish, last minute", numbers, el("div", { class: "chart" }, scale, chart), ends);
  }

  update(name, history) {
    const series = history.series(name);
    const highest = Math.max(0.01, ...series.map(([, value]) => value ?? 0));
    const step = 10 ** Math.floor(Math.log10(highest));
    const top = [1, 2, 5, 10, 20].map((n) => n * step).find((n) => n >= highest * 1.05);
    setAttribute(this.line, "d", path(series, top, 600, 140));
    setText(this.top, top < 1 ? `${milliseconds(top)} ms` : `${top} s`);
    setText(this.middle, top < 1 ? milliseconds(top / 2) : `${top / 2}`);
    for (const [share, value] of this.quantiles) setText(value, milliseconds(history.quantile(share, name)));
  }
}

// A waterfall: each bar begins where the one before it ended.
class StageChart {
  #samples = [];

  constructor() {
    this.rows = STAGES.map(([key, title]) => {
      const bar = el("span", { class: "bar", "data-stage": key, hidden: true });
      const value = el("b", { text: "–" });
      const track = el("span", { class: "track", "aria-hidden": "true" }, bar);
      return { key, bar, value, node: el("li", {}, el("span", { text: title }), track, el("span", { class: "ms" }, value, " ms")) };
    });
    this.total = el("b", { text: "–" });
    this.note = el("p", { class: "note" });
    const sum = el("li", { class: "sum" }, el("span", { text: "Together" }), el("span"), el("span", { class: "ms" }, this.total, " ms"));
    this.node = card("Where the time goes", el("ol", { class: "stages", role: "list" }, ...this.rows.map((row) => row.node), sum), this.note);
  }

  add(stages) {
    this.#samples.push(stages);
    if (this.#samples.length > SAMPLES) this.#samples.shift();
  }

  update() {
    const n = this.#samples.length;
    if (!n) return setText(this.note, "Measured on the pictures shown here; waiting for the first.");
    const means = this.rows.map(({ key }) => this.#samples.reduce((sum, s) => sum + s[key], 0) / n);
    const total = means.reduce((a, b) => a + b, 0);
    let before = 0;
    for (const [i, { bar, value }] of this.rows.entries()) {
      bar.hidden = false;
      bar.style.marginInlineStart = `${(100 * before) / total}%`;
      bar.style.width = `${(100 * means[i]) / total}%`;
      setText(value, milliseconds(means[i] / 1000));
      before += means[i];
    }
    setText(this.total, milliseconds(total / 1000));
    setText(this.note, `Mean of the last ${count(n)} pictures shown here.`);
  }
}

export class Camera {
  constructor(name, onTrouble) {
    this.name = name;
    this.pill = pill();
    this.canvas = el("canvas", { role: "img", "aria-label": "no picture yet" });
    this.shot = new Shot(this.canvas, { detailed: true });
    this.overWord = el("strong");
    this.overText = el("span");
    this.over = el("div", { class: "over", hidden: true }, this.overWord, this.overText);
    this.seen = el("ul", { class: "labels", role: "list", "aria-label": "In the picture" });
    this.rate = el("b", { text: "–" });
    this.declared = el("span", { class: "muted" });
    this.chart = new LatencyChart();
    this.stages = new StageChart();
    this.counts = new Facts();
    this.about = new Facts();
    this.tallies = new Counts();
    this.rules = { zones: [], lines: [] };
    this.editor = null;
    this.edit = el("button", { type: "button", class: "quiet", text: "Edit zones and lines" });
    this.edit.addEventListener("click", () => this.#openEditor());
    this.past = el("a", { class: "quiet", href: `events.html?stream=${encodeURIComponent(name)}`, text: "Events" });
    this.warm = el("button", { type: "button", class: "quiet", text: "Motion", title: "Where something moved in the last minute", "aria-pressed": "false", hidden: true });
    this.warm.addEventListener("click", () => this.#setWarm(this.warm.getAttribute("aria-pressed") !== "true"));
    this.full = el("button", { type: "button", class: "quiet", text: "Full screen", "aria-keyshortcuts": "f" });
    this.full.addEventListener("click", () => this.fullscreen());
    this.full.hidden = !document.fullscreenEnabled;
    this.before = el("a", { class: "step", role: "link", hidden: true, "aria-keyshortcuts": "ArrowLeft" }, "‹");
    this.after = el("a", { class: "step", role: "link", hidden: true, "aria-keyshortcuts": "ArrowRight" }, "›");
    this.shotBox = el("div", { class: "shot" }, this.canvas, this.over);
    this.detail = el("p", { class: "detail", hidden: true });
    this.picture = el("section", { class: "card picture", "aria-label": "Picture" }, this.shotBox, el("div", { class: "under" }, this.seen, el("div", { class: "row" }, this.past, this.warm, this.edit, this.full)));
    this.node = el(
      "article",
      { class: "camera" },
      el(
        "div",
        { class: "head" },
        el("a", { class: "back", href: "#/", "aria-label": "Back to all cameras" }, "←"),
        (this.title = el("h1", { text: name, tabindex: "-1" })),
        this.pill.node,
        el("nav", { class: "steps", "aria-label": "Other cameras" }, this.before, this.after),
        (this.rateBox = el("p", { class: "rate" }, this.rate, " fps ", this.declared, (this.why = el("span", { class: "muted why", text: " (max_fps)", hidden: true })))),
      ),
      this.detail,
      (this.columns = el(
        "div",
        { class: "columns" },
        this.picture,
        (this.side = el("div", { class: "side" }, this.tallies.node, this.chart.node, this.stages.node)),
        el("div", { class: "below" }, card("Frames", this.counts.node), card("Stream", this.about.node)),
      )),
    );
    this.pictures = new Pictures((description, jpeg) => this.#draw(description, jpeg), onTrouble);
    this.resized = new ResizeObserver(() => {
      this.shot.redraw();
      this.editor?.resize(...this.size);
    });
    this.size = [16, 9];
    this.resized.observe(this.canvas);
    this.onCalm = () => this.resume();
    CALM.addEventListener("change", this.onCalm);
    this.resume();
  }

  #draw(description, jpeg) {
    if (description.stream !== this.name) return;
    // The card takes the aspect ratio of the picture.
    const size = [description.width, description.height];
    if (`${size}` !== `${this.size}`) {
      this.size = size;
      this.shotBox.style.aspectRatio = size.join(" / ");
      this.editor?.resize(...size);
    }
    this.shot.draw(description, jpeg);
    this.warm.hidden = !description.heat;
    this.stages.add(description.stages);
    this.tallies.update(description.counts, description.at);
    setAttribute(this.canvas, "aria-label", `in the picture: ${told(description.boxes)}`);
    const counts = new Map();
    for (const box of description.boxes) counts.set(box[5], (counts.get(box[5]) ?? 0) + 1);
    const chips = [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
    const words = chips.map(([label, n]) => `${n} ${label}`).join("|");
    if (this.seen.dataset.words === words) return;
    this.seen.dataset.words = words;
    this.seen.replaceChildren(
      ...chips.map(([label, n]) => {
        const mark = svg("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, svg("rect", { width: 10, height: 10, rx: 2, fill: colorOf(label) }));
        return el("li", {}, mark, el("b", { text: count(n) }), ` ${label}`);
      }),
      ...(chips.length ? [] : [el("li", { class: "muted", text: "Nothing in the picture" })]),
    );
  }

  #setWarm(warm) {
    setAttribute(this.warm, "aria-pressed", String(warm));
    this.shot.warm = warm;
  }

  setRules(rules) {
    this.rules = rules[this.name] ?? { zones: [], lines: [] };
    this.tallies.rules(this.rules);
    if (!this.editor) this.shot.rules = this.rules;
  }

  #openEditor() {
    if (this.editor) return this.editor.title.focus();
    if (document.fullscreenElement) document.exitFullscreen();
    this.editor = new Editor(this.name, this.rules, () => this.#closeEditor());
    this.shotBox.append(this.editor.scene);
    this.side.prepend(this.editor.node);
    this.node.classList.add("editing");
    this.edit.hidden = this.full.hidden = true;
    this.shot.rules = null; // the editor draws its own
    this.editor.resize(...this.size);
    this.editor.title.focus({ preventScroll: true });
  }

  #closeEditor() {
    this.editor.scene.remove();
    this.editor.node.remove();
    this.editor = null;
    this.node.classList.remove("editing");
    this.shot.rules = this.rules;
    this.edit.hidden = false;
    this.full.hidden = !document.fullscreenEnabled;
    this.edit.focus({ preventScroll: true });
  }

  fullscreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else if (!this.editor) this.picture.requestFullscreen?.();
  }

  // Goes to the camera before or after this one.
  step(link) {
    if (link.hash) location.hash = link.hash;
  }

  #steps(streams) {
    const at = streams.findIndex((s) => s.stream === this.name);
    for (const [link, other, word] of [[this.before, streams[at - 1], "Previous"], [this.after, streams[at + 1], "Next"]]) {
      link.hidden = at < 0 || streams.length < 2;
      setAttribute(link, "href", other ? `#/${encodeURIComponent(other.stream)}` : null);
      setAttribute(link, "aria-disabled", other ? null : "true");
      setAttribute(link, "aria-label", other ? `${word} camera: ${other.stream}` : `${word} camera: none`);
      setAttribute(link, "title", other?.stream);
    }
  }

  update(state, history, now) {
    this.#steps(state.streams);
    const stream = state.streams.find((s) => s.stream === this.name);
    this.pill.node.hidden = this.rateBox.hidden = this.columns.hidden = !stream;
    if (!stream) {
      this.detail.hidden = false;
      setText(this.detail, "There is no camera with this name. It may have been removed from the configuration.");
      return;
    }
    const how = condition(stream, now);
    this.pill.set(how);
    this.node.dataset.kind = how.kind;
    const live = how.kind === "live";
    setText(this.rate, how.kind === "down" || how.kind === "over" ? "–" : fps(history.fps(this.name)));
    // A limit that was asked for is no loss.
    const limited = stream.max_fps != null && (!stream.fps || stream.max_fps < stream.fps);
    const expected = limited ? stream.max_fps : stream.fps;
    setText(this.declared, expected ? `of ${Number(expected.toFixed(2))}` : "");
    this.why.hidden = !limited;
    this.over.hidden = live && (this.shot.seen || stream.published > 0);
    setText(this.overWord, live ? "Waiting for a picture" : how.reason || how.word);
    const waiting = stream.state === "BACKOFF" && stream.retry_in_s > 1;
    setText(this.overText, waiting ? `next attempt in ${span(stream.retry_in_s)}` : stream.state === "CONNECTING" ? "connecting" : "");
    this.detail.hidden = !stream.detail || live;
    setText(this.detail, stream.detail.charAt(0).toUpperCase() + stream.detail.slice(1));
    this.chart.update(this.name, history);
    this.stages.update();
    this.tallies.update(this.shot.counts, now);
    const gate = history.gate(this.name);
    const drops = Object.entries(stream.dropped).sort((a, b) => b[1] - a[1]);
    this.counts.set([
      ["Captured", count(stream.received)],
      ["Published", count(stream.published)],
      ["Dropped", count(drops.reduce((sum, [, n]) => sum + n, 0))],
      ...drops.map(([reason, n]) => [`… ${DROPS[reason] ?? reason.replaceAll("_", " ")}`, count(n)]),
      ...(stream.skipped ? [["Skipped by max_fps", count(stream.skipped)]] : []),
      ...(gate ? [["Looked at", `${Math.round(100 * gate.share)} % in the last minute`], ["In the last 5 s", lately(gate.now)]] : []),
      ["Rejected by the decoder", count(stream.corrupt)],
      ...(stream.lost ? [["RTP packets lost", count(stream.lost)]] : []),
    ]);
    this.about.set([
      [stream.state === "LIVE" ? "Live for" : how.kind === "down" ? "Down for" : "In this state for", span(now - stream.since)],
      ["Newest frame", stream.last_frame ? `${span(now - stream.last_frame)} ago` : "none yet"],
      ...(stream.behind_s >= BEHIND_S ? [["Read late by", span(stream.behind_s)]] : []),
      ["Reconnects", count(stream.reconnects)],
      ["Size", stream.width ? `${stream.width} × ${stream.height}` : "–"],
      ["Codec", stream.codec || "–"],
      ["Decoder", stream.decoder || "–"],
      ...(stream.clock_jumps ? [["Clock jumps", count(stream.clock_jumps)]] : []),
    ]);
  }

  pause() {
    this.pictures.stop();
  }

  resume() {
    this.pictures.show([this.name], CALM.matches ? 1 : 10, 1280);
  }

  close() {
    this.pause();
    this.resized.disconnect();
    CALM.removeEventListener("change", this.onCalm);
  }
}
