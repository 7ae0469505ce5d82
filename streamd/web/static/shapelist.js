// The list of zones and lines in the editor: names, directions, what is wrong with them.

import { el, setText, svg } from "./dom.js";
import { ruleColor } from "./overlay.js";
import { problemOf } from "./shapes.js";

export class ShapeList {
  #selected = -1;

  // does: { select(index), remove(index), change(tag, edit) }
  constructor(does) {
    this.does = does;
    this.node = el("ul", { class: "shapes", role: "list" });
  }

  show(shapes, selected) {
    const same = this.#selected === selected && this.node.children.length === shapes.length;
    this.#selected = selected;
    const items = shapes.map((shape, index) => this.#item(shape, index));
    const wanted = JSON.stringify([selected, shapes.map((s) => [s.kind, s.name, s.directions])]);
    const typing = this.node.contains(document.activeElement) && document.activeElement instanceof HTMLInputElement;
    if (this.node.dataset.shown === wanted || (typing && same)) return;
    this.node.dataset.shown = wanted;
    this.node.replaceChildren(...items);
  }

  // Says what is wrong with each.
  check(shapes) {
    for (const [index, shape] of shapes.entries()) {
      const told = this.node.children[index]?.querySelector(".problem");
      if (!told) continue;
      const problem = problemOf(shape, shapes);
      setText(told, problem);
      told.hidden = !problem;
    }
  }

  #item(shape, index) {
    const selected = index === this.#selected;
    const mark = svg("svg", { viewBox: "0 0 14 14", "aria-hidden": "true" }, shape.kind === "zone" ? svg("path", { d: "M2 4 8 1.5 12.5 6 10 12.5 3 11z" }) : svg("path", { d: "M1.5 10.5 10.5 1.5 12.5 3.5 3.5 12.5z" }));
    mark.style.color = ruleColor(shape.name);
    const problem = el("p", { class: "problem", hidden: true });
    if (!selected) {
      const pick = el("button", { type: "button", class: "pick" }, mark, el("span", { class: "called", text: shape.name }), el("span", { class: "muted", text: shape.kind === "zone" ? `zone, ${shape.points.length} corners` : `line, ${shape.directions.join(" / ")}` }));
      pick.addEventListener("click", () => {
        this.does.select(index);
        this.node.children[index]?.querySelector("input")?.focus();
      });
      return el("li", {}, pick, problem);
    }
    const field = (label, value, take) => {
      const input = el("input", { type: "text", value, maxlength: "63", autocomplete: "off", autocapitalize: "off", spellcheck: "false" });
      input.addEventListener("input", () => {
        this.does.change(`text ${label} ${index}`, () => take(input.value.trim()));
      });
      return el("label", {}, el("span", { text: label }), input);
    };
    const button = (text, action) => {
      const node = el("button", { type: "button", class: "quiet", text });
      node.addEventListener("click", action);
      return node;
    };
    const fields = [field("Name", shape.name, (value) => (shape.name = value))];
    if (shape.kind === "line") {
      fields.push(field("Along the arrow", shape.directions[0], (value) => (shape.directions[0] = value)));
      fields.push(field("Against it", shape.directions[1], (value) => (shape.directions[1] = value)));
    }
    const tools = [button("Delete", () => this.does.remove(index))];
    if (shape.kind === "line") {
      tools.unshift(
        button("Turn around", () => this.does.change("", () => shape.points.reverse())),
      );
    }
    return el("li", { "aria-current": "true" }, el("div", { class: "fields" }, mark, ...fields), problem, el("div", { class: "row start" }, ...tools));
  }
}
