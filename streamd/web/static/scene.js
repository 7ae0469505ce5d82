// The picture's part of the zone editor: shapes as SVG with handles that mouse, touch and keyboard reach.

import { setAttribute, setText, svg } from "./dom.js";
import { arrow, fit, ruleColor } from "./overlay.js";
import { clamp, where } from "./shapes.js";

const NEAR_PX = 14;

export class Scene {
  #built = "";
  #drawing = null;
  #selected = -1;
  aspect = [16, 9];

  constructor() {
    this.node = svg("svg", { class: "scene", tabindex: "0", role: "application", "aria-label": "Zones and lines on the picture" });
  }

  // Where the picture lies in the scene, in CSS pixels.
  area() {
    return fit(this.node.clientWidth || 16, this.node.clientHeight || 9, ...this.aspect);
  }

  // The point of the picture under a pointer, in shares of the picture.
  point(event) {
    const scene = this.node.getBoundingClientRect();
    const place = this.area();
    return [clamp((event.clientX - scene.left - place.left) / place.width), clamp((event.clientY - scene.top - place.top) / place.height)];
  }

  near(a, b, px = NEAR_PX) {
    const { width, height } = this.area();
    return Math.hypot((a[0] - b[0]) * width, (a[1] - b[1]) * height) <= px;
  }

  handle(k) {
    return this.node.querySelector(`.handle[data-k="${k}"]`);
  }

  body(index) {
    return this.node.querySelector(`.body[data-index="${index}"]`);
  }

  // drawing: a shape whose points are being placed, or null; placing: its last point is held by the pointer.
  render({ shapes: finished, drawing, selected, cursor, keys, placing }) {
    this.#drawing = drawing;
    this.#selected = selected;
    const place = this.area();
    const px = ([x, y]) => [place.left + x * place.width, place.top + y * place.height].map((v) => Number(v.toFixed(1)));
    const shapes = drawing ? [...finished, drawing] : finished;
    const built = JSON.stringify([selected, Boolean(drawing), shapes.map((s) => [s.kind, s.name, s.points.length])]);
    setAttribute(this.node, "viewBox", `0 0 ${this.node.clientWidth || 16} ${this.node.clientHeight || 9}`);
    if (built !== this.#built) this.#build(shapes);
    this.#built = built;
    for (const [index, shape] of shapes.entries()) {
      const points = shape.points.map(px);
      const group = this.node.children[index];
      for (const body of group.querySelectorAll(".outline, .body")) setAttribute(body, "points", points.map((p) => p.join(",")).join(" "));
      const way = group.querySelector(".way");
      if (way && points.length === 2) {
        const { from, tip, wings } = arrow(...points, 24);
        setAttribute(way, "d", `M${from}L${tip}M${wings[0]}L${tip}L${wings[1]}`);
        const label = group.querySelector(".waytext");
        setText(label, shape.directions[0]);
        // Beside the tip, and inside of the picture.
        const [dx, dy] = [tip[0] - from[0], tip[1] - from[1]];
        const half = label.getComputedTextLength() / 2;
        const beside = tip[0] + dx * 0.3 + (half * dx) / Math.hypot(dx, dy);
        setAttribute(label, "x", Math.max(place.left + half + 4, Math.min(place.left + place.width - half - 4, beside)));
        setAttribute(label, "y", tip[1] + dy * 0.6 + 4);
      }
      for (const handle of group.querySelectorAll("[data-k]")) {
        const k = Number(handle.dataset.k);
        setAttribute(handle, "transform", `translate(${points[k]})`);
        setAttribute(handle, "aria-label", `${shape.name}, ${shape.kind === "zone" ? "corner" : "end"} ${k + 1} of ${points.length}, at ${where(shape.points[k])}`);
      }
      for (const handle of group.querySelectorAll("[data-add]")) {
        const k = Number(handle.dataset.add);
        const next = points[(k + 1) % points.length];
        setAttribute(handle, "transform", `translate(${[(points[k][0] + next[0]) / 2, (points[k][1] + next[1]) / 2]})`);
      }
    }
    const ghost = this.node.querySelector(".ghost");
    if (ghost) {
      const last = drawing.points.at(-1);
      setAttribute(ghost, "points", last && !placing ? [px(last), px(cursor)].map((p) => p.join(",")).join(" ") : "");
      const [x, y] = px(cursor);
      setAttribute(this.node.querySelector(".cross"), "d", keys ? `M${x - 14} ${y}H${x + 14}M${x} ${y - 14}V${y + 14}` : "");
    }
  }

  #build(shapes) {
    const focused = document.activeElement?.dataset ?? {};
    const [index, k] = [focused.index, focused.k];
    const had = this.node.contains(document.activeElement) && document.activeElement !== this.node;
    this.node.replaceChildren(
      ...shapes.map((shape, i) => this.#group(shape, i)),
      ...(this.#drawing ? [svg("polyline", { class: "ghost" }), svg("path", { class: "cross" })] : []),
    );
    this.node.classList.toggle("drawing", Boolean(this.#drawing));
    if (had && index !== undefined) {
      const same = k === undefined ? this.body(index) : this.handle(Number(k));
      (same ?? this.node).focus({ preventScroll: true });
    }
  }

  #group(shape, index) {
    const color = ruleColor(shape.name);
    const open = shape === this.#drawing;
    const tag = shape.kind === "zone" && !open ? "polygon" : "polyline";
    const group = svg("g", { class: `shape ${shape.kind}${index === this.#selected ? " selected" : ""}` });
    group.style.setProperty("--color", color);
    group.append(svg(tag, { class: "outline under" }), svg(tag, { class: "outline" }));
    if (shape.kind === "line") group.append(svg("path", { class: "way" }), svg("text", { class: "waytext", "text-anchor": "middle" }));
    if (open) {
      group.append(...shape.points.map((_, k) => svg("g", { class: "handle drawn", "data-k": k }, svg("circle", { r: k ? 5 : 8 }))));
      return group;
    }
    group.append(svg(tag, { class: "body", "data-index": index, tabindex: "0", role: "button", "aria-label": `${shape.kind} ${shape.name}` }));
    if (index !== this.#selected || this.#drawing) return group;
    if (shape.kind === "zone") {
      shape.points.forEach((_, k) => {
        const attributes = { class: "add", "data-index": index, "data-add": k, tabindex: "0", role: "button", "aria-label": `add a corner after corner ${k + 1}` };
        group.append(svg("g", attributes, svg("circle", { class: "touch", r: 14 }), svg("circle", { r: 5 })));
      });
    }
    shape.points.forEach((_, k) => {
      const attributes = { class: "handle", "data-index": index, "data-k": k, tabindex: "0", role: "button", "aria-roledescription": "movable point" };
      group.append(svg("g", attributes, svg("circle", { class: "touch", r: 22 }), svg("circle", { r: 7 })));
    });
    return group;
  }
}
