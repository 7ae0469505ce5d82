// How many of the listed events began when. A click or Enter goes to the events of a bar.

import { count, el, setAttribute, setText, svg } from "./dom.js";

const BARS = 96;
const HEIGHT = 56;

const moment = (seconds) => new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short", hour12: false });
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString(undefined, { timeStyle: "short", hour12: false });

export class Timeline {
  #counts = [];
  #begin = 0;
  #width = 1; // of a bar, seconds
  #at = null;

  constructor(node, onJump) {
    this.node = node;
    this.onJump = onJump;
    this.picture = svg("svg", { viewBox: `0 0 ${BARS} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    this.told = el("span", { class: "told", hidden: true });
    this.bars = el("div", { class: "bars", role: "slider", tabindex: "0", "aria-label": "Time", "aria-valuemin": "0", "aria-valuemax": String(BARS - 1) }, this.picture, this.told);
    this.first = el("span");
    this.last = el("span");
    node.append(this.bars, el("p", { "aria-hidden": "true" }, this.first, this.last));
    this.bars.addEventListener("pointermove", (event) => this.#show(this.#under(event)));
    this.bars.addEventListener("pointerleave", () => this.#show(document.activeElement === this.bars ? this.#at : null));
    this.bars.addEventListener("click", (event) => this.#jump(this.#under(event)));
    this.bars.addEventListener("focus", () => this.#show(this.#at ?? BARS - 1));
    this.bars.addEventListener("blur", () => this.#show(null));
    this.bars.addEventListener("keydown", (event) => this.#key(event));
  }

  #under(event) {
    const box = this.bars.getBoundingClientRect();
    return Math.max(0, Math.min(BARS - 1, Math.floor(((event.clientX - box.left) / box.width) * BARS)));
  }

  #key(event) {
    const at = this.#at ?? BARS - 1;
    // From bar to bar: the empty ones between hold nothing.
    const full = this.#counts.map((n, i) => (n ? i : -1)).filter((i) => i >= 0);
    const to = { ArrowLeft: full.findLast((i) => i < at), ArrowRight: full.find((i) => i > at), Home: full[0], End: full.at(-1) }[event.key];
    if (event.key === "Enter" || event.key === " ") this.#jump(at);
    else if (to != null) this.#show(to);
    else if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
  }

  #jump(bar) {
    if (this.#counts[bar]) this.onJump(this.#begin + (bar + 1) * this.#width);
  }

  #words(bar) {
    const begin = this.#begin + bar * this.#width;
    const n = this.#counts[bar] ?? 0;
    return `${moment(begin)} – ${clock(begin + this.#width)}: ${count(n)} event${n === 1 ? "" : "s"}`;
  }

  #show(bar) {
    this.#at = bar ?? this.#at;
    this.told.hidden = bar == null;
    for (const rect of this.picture.querySelectorAll(".at")) rect.classList.remove("at");
    if (bar == null) return;
    this.picture.querySelector(`[data-bar="${bar}"]`)?.classList.add("at");
    setText(this.told, this.#words(bar));
    setAttribute(this.bars, "aria-valuenow", String(bar));
    setAttribute(this.bars, "aria-valuetext", this.#words(bar));
    const half = this.told.offsetWidth / 2;
    const width = this.bars.clientWidth;
    this.told.style.left = `${Math.max(half, Math.min(width - half, ((bar + 0.5) / BARS) * width))}px`;
  }

  update(events) {
    this.node.hidden = events.length < 2;
    if (this.node.hidden) return;
    const last = events[0].began;
    this.#begin = events.at(-1).began;
    this.#width = Math.max(0.001, (last - this.#begin) / (BARS - 0.001)); // the last event is in the last bar
    this.#counts = new Array(BARS).fill(0);
    for (const event of events) this.#counts[Math.min(BARS - 1, Math.floor((event.began - this.#begin) / this.#width))] += 1;
    const top = Math.max(...this.#counts);
    this.picture.replaceChildren(
      svg("rect", { class: "ground", x: 0, y: HEIGHT - 1, width: BARS, height: 1 }),
      ...this.#counts.flatMap((n, x) => {
        const height = Math.max(3, (n / top) * HEIGHT);
        return n ? [svg("rect", { x: x + 0.1, width: 0.8, y: HEIGHT - height, height, "data-bar": x })] : [];
      }),
    );
    setText(this.first, moment(this.#begin));
    setText(this.last, moment(last));
    setAttribute(this.bars, "aria-valuenow", String(BARS - 1));
  }
}
