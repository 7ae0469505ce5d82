// The zone editor: polygons and lines drawn over the live picture. Its result is YAML to copy; it writes nothing.

import { el, setText } from "./dom.js";
import { Scene } from "./scene.js";
import { ShapeList } from "./shapelist.js";
import { clamp, freeName, least, rounded, shapesOf, where, yaml } from "./shapes.js";

const STEP = 0.002; // shares of the picture
const LONG_STEP = 0.02;
const DOUBLE_MS = 400;
const UNDO = 100;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const kept = new Map(); // unfinished work by camera, while the page is open and the camera's configuration the same

const copyOf = (shapes) => JSON.parse(JSON.stringify(shapes));

export class Editor {
  #shapes;
  #base;
  #selected = -1;
  #drawing = null; // a shape whose points are being placed
  #cursor = [0.5, 0.5];
  #keys = false; // the cross-hair is shown: drawing by keyboard
  #gesture = null;
  #undo = [];
  #tag = "";
  #placed = { at: 0, x: 0, y: 0 };

  // onClose() once it is left
  constructor(name, rules, onClose) {
    this.name = name;
    this.onClose = onClose;
    this.#base = JSON.stringify(rules);
    const mine = kept.get(name);
    this.#shapes = mine?.base === this.#base ? mine.shapes : shapesOf(rules);
    this.picture = new Scene();
    this.scene = this.picture.node;
    this.scene.addEventListener("pointerdown", (event) => this.#down(event));
    this.scene.addEventListener("pointermove", (event) => this.#move(event));
    for (const type of ["pointerup", "pointercancel"]) this.scene.addEventListener(type, (event) => this.#up(event));
    this.scene.addEventListener("keydown", (event) => this.#sceneKey(event));
    this.scene.addEventListener("focusin", (event) => this.#focused(event));
    this.hint = el("p", { class: "note hint", role: "status" });
    this.shapeList = new ShapeList({
      select: (index) => this.#select(index),
      remove: (index) => this.#remove(index),
      change: (tag, edit) => {
        this.#remember(tag);
        edit();
        this.#show();
      },
    });
    this.list = this.shapeList.node;
    this.code = el("pre", { class: "yaml", tabindex: "0", "aria-label": "Configuration" });
    this.copied = el("span", { class: "muted", role: "status" });
    const button = (text, action, className = "quiet") => {
      const node = el("button", { type: "button", class: className, text });
      node.addEventListener("click", action);
      return node;
    };
    this.undoButton = button("Undo", () => this.#back());
    this.finishButton = button("Finish", () => this.#finish(), "quiet strong");
    this.cancelButton = button("Cancel", () => this.#cancel());
    this.copyButton = button("Copy YAML", () => this.#copy(), "quiet strong");
    this.node = el(
      "section",
      { class: "card editor", "aria-label": "Zone editor" },
      el("div", { class: "row" }, el("h2", { text: "Zones and lines", tabindex: "-1" }), button("Done", () => this.close())),
      el("div", { class: "row start" }, button("Add zone", () => this.#draw("zone")), button("Add line", () => this.#draw("line")), this.undoButton, this.finishButton, this.cancelButton),
      this.hint,
      this.list,
      this.code,
      el("div", { class: "row start" }, this.copyButton, this.copied),
      el("p", { class: "note", text: "Put this into the stream's configuration and reload streamd. The page itself changes nothing." }),
    );
    this.node.addEventListener("keydown", (event) => this.#panelKey(event));
    this.#show();
  }

  get title() {
    return this.node.querySelector("h2");
  }

  // The picture has this many pixels, and the scene covers its area.
  resize(width, height) {
    this.picture.aspect = [width, height];
    this.#render();
  }

  close() {
    if (this.#drawing) this.#cancel();
    this.onClose();
  }

  // ------------------------------------------------------------------------------------------------------- changes

  // Before a change. Changes with the same tag in a row are undone together.
  #remember(tag = "") {
    if (tag && tag === this.#tag) return;
    this.#tag = tag;
    this.#undo.push(copyOf(this.#shapes));
    if (this.#undo.length > UNDO) this.#undo.shift();
  }

  #back() {
    if (!this.#undo.length) return;
    this.#shapes = this.#undo.pop();
    this.#tag = "";
    this.#drawing = null;
    this.#select(-1);
  }

  #select(index) {
    this.#selected = index;
    this.#show();
  }

  #draw(kind) {
    this.#drawing = { kind, name: freeName(kind, this.#shapes), points: [], ...(kind === "line" ? { directions: ["in", "out"] } : {}), rest: {} };
    this.#selected = -1;
    this.#keys = false;
    this.#show();
    this.scene.focus({ preventScroll: true });
    this.scene.scrollIntoView({ block: "nearest" });
  }

  #cancel() {
    this.#drawing = null;
    this.#keys = false;
    this.#show();
  }

  #finish() {
    const shape = this.#drawing;
    if (!shape || shape.points.length < least(shape)) return;
    this.#drawing = null;
    this.#keys = false;
    this.#remember();
    this.#shapes.push(shape);
    this.#select(this.#shapes.length - 1);
    const name = this.list.querySelector("[aria-current] input");
    name?.focus({ preventScroll: matchMedia("(pointer: coarse)").matches });
    name?.select();
  }

  #place(point) {
    this.#drawing.points.push(rounded(point));
    if (this.#drawing.kind === "line" && this.#drawing.points.length === 2 && !this.#gesture) this.#finish();
    else this.#show();
  }

  #remove(index) {
    this.#remember();
    this.#shapes.splice(index, 1);
    this.#select(-1);
    this.title.focus({ preventScroll: true });
  }

  #removePoint(index, k) {
    const shape = this.#shapes[index];
    if (shape.points.length <= least(shape)) return setText(this.hint, shape.kind === "zone" ? "A zone has at least three corners." : "A line has two ends.");
    this.#remember();
    shape.points.splice(k, 1);
    this.#show();
    this.picture.handle(Math.min(k, shape.points.length - 1))?.focus();
  }

  #insertPoint(index, k) {
    const { points } = this.#shapes[index];
    const [a, b] = [points[k], points[(k + 1) % points.length]];
    this.#remember();
    points.splice(k + 1, 0, rounded([(a[0] + b[0]) / 2, (a[1] + b[1]) / 2]));
    this.#show();
    this.picture.handle(k + 1)?.focus();
  }

  // Moves one point, or all where k is -1; a shape as a whole stays inside of the picture.
  #shift(index, k, dx, dy, from = this.#shapes[index].points) {
    const shape = this.#shapes[index];
    if (k >= 0) shape.points[k] = rounded([from[k][0] + dx, from[k][1] + dy]);
    else {
      const inside = (d, values) => Math.min(1 - Math.max(...values), Math.max(-Math.min(...values), d));
      const [sx, sy] = [inside(dx, from.map(([x]) => x)), inside(dy, from.map(([, y]) => y))];
      shape.points = from.map(([x, y]) => rounded([x + sx, y + sy]));
    }
    this.#render();
    this.#tell();
  }

  async #copy() {
    const text = yaml(this.#shapes);
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // No clipboard without HTTPS or localhost: the older way needs a selection.
      getSelection().selectAllChildren(this.code);
      if (!document.execCommand("copy")) return setText(this.copied, "Selected: copy it with the keyboard.");
      getSelection().removeAllRanges();
    }
    setText(this.copied, "Copied.");
    setTimeout(() => setText(this.copied, ""), 4000);
  }

  // ---------------------------------------------------------------------------------------------- pointer and keys

  #down(event) {
    if (event.button || this.#gesture) return;
    const at = this.picture.point(event);
    this.#keys = false;
    if (this.#drawing) {
      const { kind, points } = this.#drawing;
      const twice = event.timeStamp - this.#placed.at < DOUBLE_MS && points.length && this.picture.near(points.at(-1), at, 6);
      event.preventDefault();
      this.scene.focus({ preventScroll: true });
      if (kind === "zone" && points.length >= 3 && (twice || this.picture.near(points[0], at))) return this.#finish();
      if (twice) return;
      this.#placed.at = event.timeStamp;
      this.#gesture = { pointer: event.pointerId, at, points: kind === "line" && !points.length ? 2 : 1 };
      this.#place(at);
    } else {
      const { index, k, add } = event.target.closest("[data-index]")?.dataset ?? {};
      if (index === undefined) return this.#select(-1);
      const number = Number(index);
      if (add !== undefined) {
        this.#insertPoint(number, Number(add));
        this.#gesture = { pointer: event.pointerId, at, index: number, k: Number(add) + 1, from: copyOf(this.#shapes[number].points), moved: true };
      } else {
        if (number !== this.#selected) this.#select(number);
        this.#gesture = { pointer: event.pointerId, at, index: number, k: k === undefined ? -1 : Number(k), from: copyOf(this.#shapes[number].points), moved: false };
        if (k !== undefined) this.picture.handle(Number(k))?.focus({ preventScroll: true });
      }
      event.preventDefault();
    }
    this.scene.setPointerCapture(event.pointerId);
  }

  #move(event) {
    const gesture = this.#gesture;
    const at = this.picture.point(event);
    if (this.#drawing) this.#cursor = at;
    if (!gesture || gesture.pointer !== event.pointerId) {
      if (this.#drawing) this.#render();
      return;
    }
    if (this.#drawing) {
      const { points } = this.#drawing;
      if (gesture.points === 2) {
        // A line may be drawn in one go, from end to end.
        if (points.length === 1 && !this.picture.near(gesture.at, at)) points.push(rounded(at));
        else if (points.length === 2) points[1] = rounded(at);
      } else points[points.length - 1] = rounded(at);
      this.#render();
      return;
    }
    if (!gesture.moved) {
      if (this.picture.near(gesture.at, at, 3)) return;
      gesture.moved = true;
      this.#remember();
    }
    this.#shift(gesture.index, gesture.k, at[0] - gesture.at[0], at[1] - gesture.at[1], gesture.from);
  }

  #up(event) {
    if (this.#gesture?.pointer !== event.pointerId) return;
    this.#gesture = null;
    if (this.#drawing?.kind === "line" && this.#drawing.points.length === 2) this.#finish();
    else this.#show();
  }

  #focused(event) {
    const { index } = event.target.dataset;
    if (index !== undefined && Number(index) !== this.#selected && !this.#drawing && !this.#gesture) {
      const { k } = event.target.dataset;
      this.#select(Number(index));
      (k === undefined ? this.picture.body(index) : this.picture.handle(Number(k)))?.focus();
    }
  }

  #sceneKey(event) {
    const { key, shiftKey } = event;
    if (event.altKey || event.metaKey || event.ctrlKey) return this.#panelKey(event);
    if (this.#drawing) this.#drawKey(event);
    else if (event.target !== this.scene) {
      const { index, k, add } = event.target.dataset;
      const number = Number(index);
      const far = shiftKey ? LONG_STEP : STEP;
      if (ARROWS[key]) {
        const which = k === undefined ? -1 : Number(k);
        if (add !== undefined) return;
        this.#remember(`${index} ${which}`);
        this.#shift(number, which, ...ARROWS[key].map((d) => d * far));
      } else if (key === "Delete" || key === "Backspace") {
        if (k !== undefined) this.#removePoint(number, Number(k));
        else if (add === undefined) this.#remove(number);
      } else if ((key === "Enter" || key === " ") && add !== undefined) this.#insertPoint(number, Number(add));
      else if (key === "Enter" && k === undefined) this.picture.handle(0)?.focus();
      else return this.#panelKey(event);
      event.preventDefault();
      event.stopPropagation();
    } else this.#panelKey(event);
  }

  #drawKey(event) {
    const { key, shiftKey } = event;
    const shape = this.#drawing;
    if (ARROWS[key]) {
      if (!this.#keys) this.#cursor = shape.points.at(-1) ?? [0.5, 0.5];
      const far = shiftKey ? LONG_STEP : STEP * 5;
      this.#cursor = this.#cursor.map((value, axis) => clamp(value + ARROWS[key][axis] * far));
      this.#keys = true;
      this.#show();
    } else if (key === " " || (key === "Enter" && shape.points.length < least(shape))) {
      if (!this.#keys && !shape.points.length) this.#cursor = [0.5, 0.5];
      this.#keys = true;
      if (!shape.points.length || !this.picture.near(shape.points.at(-1), this.#cursor, 1)) this.#place(this.#cursor);
    } else if (key === "Enter") this.#finish();
    else if (key === "Backspace" || key === "Delete") {
      shape.points.pop();
      this.#show();
    } else return this.#panelKey(event);
    event.preventDefault();
    event.stopPropagation();
  }

  #panelKey(event) {
    if (event.key === "Escape") {
      if (this.#drawing) this.#cancel();
      else if (this.#selected >= 0) this.#select(-1);
      else this.close();
    } else if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey) && !(event.target instanceof HTMLInputElement)) this.#back();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  // ---------------------------------------------------------------------------------------------------- what is seen

  #show() {
    kept.set(this.name, { base: this.#base, shapes: this.#shapes });
    this.#render();
    this.shapeList.show(this.#shapes, this.#selected);
    this.#tell();
  }

  #render() {
    this.picture.render({ shapes: this.#shapes, drawing: this.#drawing, selected: this.#selected, cursor: this.#cursor, keys: this.#keys, placing: Boolean(this.#gesture) });
  }

  #tell() {
    const shape = this.#drawing ?? this.#shapes[this.#selected];
    this.undoButton.disabled = !this.#undo.length;
    this.finishButton.hidden = !this.#drawing || this.#drawing.kind === "line" || this.#drawing.points.length < 3;
    this.cancelButton.hidden = !this.#drawing;
    const n = this.#drawing?.points.length ?? 0;
    const at = this.#keys && this.#drawing ? ` Cross-hair at ${where(this.#cursor)}.` : "";
    const keys = "Keyboard: arrows move the cross-hair, Space sets a point, Enter finishes, Esc cancels.";
    const words = this.#drawing
      ? (shape.kind === "line" ? `Click or tap ${n ? "the other end" : "one end of the line, or drag from end to end"}.` : n < 3 ? `Click or tap corner ${n + 1}.` : "Add corners; finish with the first corner or a double click.") + (at || ` ${keys}`)
      : shape
        ? `${shape.kind === "zone" ? "Drag a corner, the dot on an edge to add a corner," : "Drag an end,"} or the whole ${shape.kind}. Keyboard: Tab to a point, arrows move it (Shift: farther), Delete removes it.`
        : this.#shapes.length
          ? "Select a zone or line to change it."
          : "Add a zone to know who is inside and for how long, or a line to count who crosses it.";
    setText(this.hint, words);
    setText(this.code, yaml(this.#shapes) || "# no zones or lines yet\n");
    this.copyButton.disabled = !this.#shapes.length;
    this.shapeList.check(this.#shapes);
  }
}
