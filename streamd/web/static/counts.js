// The card with the counts of a camera's zones and lines.

import { count, el, setText, span } from "./dom.js";
import { countText, ruleColor, total, uncertain } from "./overlay.js";

export class Counts {
  #shown = "";
  #rows = new Map();

  constructor() {
    this.empty = el("p", { class: "note", text: "No zones or lines are configured for this camera." });
    this.list = el("ul", { class: "counts", role: "list" });
    this.node = el("section", { class: "card", "aria-label": "Counts of zones and lines" }, el("h2", { text: "Zones and lines" }), this.list, this.empty);
  }

  rules(rules) {
    const wanted = JSON.stringify([rules.zones, rules.lines]);
    if (this.#shown === wanted) return;
    this.#shown = wanted;
    this.#rows.clear();
    for (const [kind, each] of [...rules.zones.map((zone) => ["zone", zone]), ...rules.lines.map((line) => ["line", line])]) {
      const mark = el("i", { class: `mark ${kind}`, "aria-hidden": "true" });
      mark.style.setProperty("--color", ruleColor(each.name));
      const [now, since] = [el("b", { text: "–" }), el("span", { class: "muted" })];
      this.#rows.set(`${kind} ${each.name}`, { kind, name: each.name, now, since, node: el("li", {}, el("span", { class: "rule" }, mark, el("span", { text: each.name })), now, since) });
    }
    this.list.replaceChildren(...[...this.#rows.values()].map((row) => row.node));
    this.empty.hidden = this.#rows.size > 0;
  }

  // counts: as messages have them; now: Unix seconds
  update(counts, now) {
    for (const row of this.#rows.values()) {
      const report = counts?.[`${row.kind}s`]?.[row.name];
      const told = countText(row.kind, report) || "–";
      // Each part stays on one line, as long as it has room on any.
      if (row.now.textContent !== told) row.now.replaceChildren(...told.split(/(?<= ·) /).flatMap((part, i) => [i ? " " : "", el("span", { text: part })]));
      if (!report) continue;
      const doubtful = uncertain(report);
      const words = row.kind === "zone" ? [`${count(total(report))} in all`] : doubtful ? [`${count(doubtful)} uncertain`] : [];
      setText(row.since, [...words, `for ${span(now - report.since)}`].join(", "));
    }
  }
}
