// The wall: a tile for each camera.

import { condition, count, el, fps, milliseconds, percent, pill, remember, remembered, setAttribute, setText, span, svg, urgency } from "./dom.js";
import { path } from "./history.js";
import { Pictures, Shot, told } from "./pictures.js";

const SETTLE_MS = 150;
const SIZES = ["auto", "small", "medium", "large"];
const CALM = matchMedia("(prefers-reduced-motion: reduce)");

class Tile {
  constructor(name) {
    this.name = name;
    this.pill = pill();
    this.canvas = el("canvas", { role: "img", "aria-label": "no picture yet" });
    this.shot = new Shot(this.canvas);
    this.overWord = el("strong");
    this.overText = el("span");
    this.over = el("div", { class: "over", hidden: true }, this.overWord, this.overText);
    this.line = svg("path", {});
    this.fps = el("b", { text: "–" });
    this.latency = el("b", { text: "–" });
    this.drops = el("b", { text: "–" });
    const numbers = el(
      "p",
      { class: "numbers", id: `numbers-${name}` },
      el("span", {}, this.fps, " fps"),
      el("span", { class: "latency" }, this.latency, " ms"),
      svg("svg", { class: "spark", viewBox: "0 0 120 24", preserveAspectRatio: "none", "aria-hidden": "true" }, this.line),
      (this.dropsBox = el("span", { class: "drops" }, this.drops, " % dropped")),
    );
    this.link = el(
      "a",
      { href: `#/${encodeURIComponent(name)}`, "aria-describedby": numbers.id },
      el("div", { class: "shot" }, this.canvas, this.over),
      el("p", { class: "title" }, el("span", { class: "name", text: name, title: name }), this.pill.node),
      numbers,
    );
    this.node = el("li", { class: "tile" }, this.link);
  }

  update(stream, history, now) {
    const how = condition(stream, now);
    this.kind = how.kind;
    this.urgency = urgency(how);
    this.node.dataset.kind = how.kind;
    this.pill.set(how);
    setAttribute(this.link, "aria-label", `${this.name}: ${how.word}${how.reason ? `, ${how.reason}` : ""}`);
    const silent = how.kind === "down" || how.kind === "over";
    this.over.hidden = how.kind === "live" && (this.shot.seen || stream.published > 0);
    setText(this.overWord, how.kind === "live" ? "Waiting for a picture" : how.reason || how.word);
    const lasting = how.kind === "down" ? `for ${span(now - stream.since)}` : "";
    const wait = stream.state === "BACKOFF" && stream.retry_in_s > 1 ? `next attempt in ${span(stream.retry_in_s)}` : "";
    setText(this.overText, [lasting, wait].filter(Boolean).join(", "));
    setText(this.fps, silent ? "–" : fps(history.fps(this.name)));
    setText(this.latency, silent ? "–" : milliseconds(history.latency(this.name)));
    const lost = history.dropped(this.name);
    setText(this.drops, percent(lost));
    this.dropsBox.classList.toggle("notable", lost >= 0.01);
    const series = history.series(this.name);
    const top = Math.max(0.02, ...series.map(([, value]) => value ?? 0)) * 1.15;
    setAttribute(this.line, "d", path(series, top, 120, 24, Math.min(60, Math.max(5, series[0]?.[0] ?? 0))));
  }

  draw(description, jpeg) {
    this.shot.draw(description, jpeg);
    setAttribute(this.canvas, "aria-label", `in the picture: ${told(description.boxes)}`);
  }
}

export class Wall {
  #tiles = new Map();
  #visible = new Set();
  #timer = 0;
  #filter = "all";
  #words = "";
  #size = "auto";
  #rules = {};

  constructor(onTrouble) {
    this.pictures = new Pictures((description, jpeg) => this.#tiles.get(description.stream)?.draw(description, jpeg), onTrouble);
    this.list = el("ul", { class: "wall", role: "list" });
    this.empty = el("p", { class: "empty", hidden: true });
    this.all = this.#button("all", "All");
    this.problems = this.#button("problems", "Problems");
    this.find = el("input", { type: "search", placeholder: "Find a camera", "aria-label": "Find a camera", autocomplete: "off" });
    this.find.addEventListener("input", () => {
      this.#words = this.find.value.trim().toLowerCase();
      this.#apply();
    });
    this.sizeButton = el("button", { type: "button", class: "quiet" });
    this.sizeButton.addEventListener("click", () => this.#setSize(SIZES[(SIZES.indexOf(this.#size) + 1) % SIZES.length]));
    this.full = el("button", { type: "button", class: "quiet full", text: "Full screen", "aria-keyshortcuts": "f" });
    this.full.addEventListener("click", () => this.fullscreen());
    this.full.hidden = !document.fullscreenEnabled;
    const filters = el("div", { class: "segments", role: "group", "aria-label": "Which cameras" }, this.all.node, this.problems.node);
    this.node = el("div", {}, el("h1", { class: "unseen", text: "Cameras" }), el("div", { class: "wallbar" }, filters, this.find, el("div", { class: "row end" }, this.sizeButton, this.full)), this.empty, this.list);
    this.observer = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) {
          if (entry.isIntersecting) this.#visible.add(entry.target.dataset.stream);
          else this.#visible.delete(entry.target.dataset.stream);
        }
        this.#settle();
      },
      { rootMargin: "80px" },
    );
    this.resized = new ResizeObserver(() => this.#tiles.forEach((tile) => tile.shot.redraw()));
    this.resized.observe(this.list);
    this.onCalm = () => this.#settle();
    CALM.addEventListener("change", this.onCalm);
    this.#setSize(remembered("size", SIZES));
  }

  #setSize(size) {
    this.#size = size;
    setText(this.sizeButton, `Tiles: ${size}`);
    remember("size", size);
    this.#density();
  }

  #density() {
    const n = this.#tiles.size;
    const auto = n === 1 ? "one" : n <= 4 ? "few" : n <= 12 ? "some" : "many";
    this.list.dataset.size = { auto, small: "many", medium: "some", large: n === 1 ? "one" : "few" }[this.#size];
  }

  // The whole wall, for a screen in a control room.
  fullscreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else document.documentElement.requestFullscreen?.();
  }

  // Back from a camera: the focus, and what is in sight, are where they were.
  focusOn(name) {
    this.#tiles.get(name)?.link.focus();
  }

  setRules(rules) {
    this.#rules = rules;
    for (const tile of this.#tiles.values()) tile.shot.rules = rules[tile.name] ?? null;
  }

  #button(name, text) {
    const number = el("b");
    const node = el("button", { type: "button", "aria-pressed": String(name === this.#filter) }, `${text} `, number);
    node.addEventListener("click", () => {
      this.#filter = name;
      this.#apply();
    });
    return { name, node, number };
  }

  update(state, history, now) {
    const names = new Set(state.streams.map((stream) => stream.stream));
    for (const [name, tile] of this.#tiles) {
      if (names.has(name)) continue;
      this.observer.unobserve(tile.node);
      tile.node.remove();
      this.#tiles.delete(name);
      this.#visible.delete(name);
    }
    for (const stream of state.streams) {
      let tile = this.#tiles.get(stream.stream);
      if (!tile) {
        tile = new Tile(stream.stream);
        tile.node.dataset.stream = stream.stream;
        tile.shot.rules = this.#rules[stream.stream] ?? null;
        this.#tiles.set(stream.stream, tile);
        this.list.append(tile.node);
        this.observer.observe(tile.node);
      }
      tile.update(stream, history, now);
    }
    this.#arrange(state.streams.map((stream) => this.#tiles.get(stream.stream)));
    this.#density();
    this.find.hidden = this.#tiles.size <= 12;
    this.#apply();
  }

  // The streams come sorted by name; equal urgency keeps that order.
  #arrange(tiles) {
    const focused = document.activeElement;
    tiles.sort((a, b) => a.urgency - b.urgency);
    for (const [i, tile] of tiles.entries()) {
      if (this.list.children[i] !== tile.node) this.list.insertBefore(tile.node, this.list.children[i]);
    }
    // Moving an element takes the focus from it.
    if (focused !== document.activeElement && this.list.contains(focused)) focused.focus({ preventScroll: true });
  }

  #apply() {
    let [shown, wrong] = [0, 0];
    for (const tile of this.#tiles.values()) {
      const problem = tile.kind === "down" || tile.kind === "warn";
      wrong += problem;
      const fits = (this.#filter === "all" || problem) && tile.name.toLowerCase().includes(this.#words);
      tile.node.hidden = !fits;
      shown += fits;
    }
    for (const button of [this.all, this.problems]) setAttribute(button.node, "aria-pressed", String(button.name === this.#filter));
    setText(this.all.number, count(this.#tiles.size));
    setText(this.problems.number, count(wrong));
    this.problems.node.classList.toggle("alarm", wrong > 0);
    this.empty.hidden = shown > 0 || !this.#tiles.size;
    setText(this.empty, this.#words ? "No camera matches this name." : "No camera has a problem.");
  }

  #settle() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      const n = this.#visible.size;
      const rate = CALM.matches ? 0.5 : n <= 4 ? 8 : n <= 12 ? 4 : 2;
      this.pictures.show([...this.#visible].sort(), rate, n <= 4 ? 800 : 480);
    }, SETTLE_MS);
  }

  pause() {
    clearTimeout(this.#timer);
    this.pictures.stop();
  }

  resume() {
    this.#settle();
  }

  close() {
    this.pause();
    this.observer.disconnect();
    this.resized.disconnect();
    CALM.removeEventListener("change", this.onCalm);
  }
}
