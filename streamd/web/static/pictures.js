// All pictures in one endless response: browsers allow six connections to a host, and a wall may have forty cameras.

import { drawCounts, drawHeat, drawRules, fit, Trails } from "./overlay.js";

const RETRY_MS = 3000;

export class Pictures {
  #controller = null;
  #timer = 0;
  #asked = "";

  // onPicture(description, jpeg as Blob or null), onTrouble(text, empty if there is none)
  constructor(onPicture, onTrouble) {
    this.onPicture = onPicture;
    this.onTrouble = onTrouble;
  }

  // Requests these cameras from now on; requests nothing if there are none.
  show(streams, fps, width) {
    const asked = streams.length ? `pictures?fps=${fps}&width=${width}&streams=${streams.map(encodeURIComponent).join(",")}` : "";
    if (asked === this.#asked) return;
    this.stop();
    this.#asked = asked;
    if (asked) this.#run(asked);
  }

  stop() {
    clearTimeout(this.#timer);
    this.#controller?.abort();
    this.#controller = null;
    this.#asked = "";
  }

  async #run(asked) {
    const controller = (this.#controller = new AbortController());
    try {
      const answer = await fetch(asked, { signal: controller.signal });
      if (!answer.ok) throw new Error(answer.status === 503 ? "Too many viewers: no pictures for now" : `No pictures (${answer.status})`);
      this.onTrouble("");
      await this.#read(answer.body.getReader());
    } catch (error) {
      if (controller.signal.aborted) return;
      // A TypeError means a network failure, which the state poll reports.
      this.onTrouble(error instanceof TypeError ? "" : error.message);
    }
    if (!controller.signal.aborted) this.#timer = setTimeout(() => this.#run(asked), RETRY_MS);
  }

  async #read(reader) {
    const text = new TextDecoder();
    let held = new Uint8Array(0);
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const joined = new Uint8Array(held.length + value.length);
      joined.set(held);
      joined.set(value, held.length);
      held = joined;
      for (;;) {
        if (held.length < 8) break;
        const view = new DataView(held.buffer, held.byteOffset);
        const head = view.getUint32(0);
        const end = 8 + head + view.getUint32(4);
        if (held.length < end) break;
        if (head) {
          const jpeg = end > 8 + head ? new Blob([held.subarray(8 + head, end)], { type: "image/jpeg" }) : null;
          this.onPicture(JSON.parse(text.decode(held.subarray(8, 8 + head))), jpeg);
        }
        held = held.subarray(end);
      }
    }
  }
}

// Limbs between the 17 keypoints of COCO; other models have points only.
const LIMBS = [[0, 1], [0, 2], [1, 3], [2, 4], [5, 6], [5, 7], [7, 9], [6, 8], [8, 10], [5, 11], [6, 12], [11, 12], [11, 13], [13, 15], [12, 14], [14, 16]];
const SURE = 0.5; // keypoints of which the model is less sure are not drawn

const COLORS = ["#5aa9ff", "#ffc04d", "#4ade9c", "#ff7a90", "#c19bff", "#38dbe6", "#ff9d5c", "#dbe65a"];

export function colorOf(label) {
  let hash = 0;
  for (const character of label) hash = (hash * 31 + character.codePointAt(0)) >>> 0;
  return COLORS[(hash % 97) % COLORS.length]; // 97 keeps people and road vehicles apart
}

// Track numbers are unique in the daemon; the process among its workers is in the upper half, of no use to people.
const short = (track) => track % 2 ** 32;

// A canvas with the newest picture, its boxes, zones and lines, drawn at the screen's own resolution.
export class Shot {
  #drawing = false;
  #last = null;
  #trails = new Trails();
  #rules = null;
  #warm = false;

  constructor(canvas, { detailed = false } = {}) {
    this.canvas = canvas;
    this.detailed = detailed;
    this.seen = false;
  }

  // Zones and lines to draw over the pictures; null for none.
  set rules(rules) {
    this.#rules = rules;
    this.redraw();
  }

  // Whether to draw where something moved lately.
  set warm(warm) {
    this.#warm = warm;
    this.redraw();
  }

  get counts() {
    return this.#last?.description.counts;
  }

  async draw(description, jpeg) {
    if (this.#drawing) return; // a slow browser skips pictures
    this.#drawing = true;
    try {
      const bitmap = jpeg ? await createImageBitmap(jpeg) : null;
      this.#last?.bitmap?.close();
      this.#last = { description, bitmap };
      if (this.detailed) this.#trails.add(description);
      this.redraw();
      this.seen = true;
    } finally {
      this.#drawing = false;
    }
  }

  redraw() {
    const { canvas } = this;
    if (!this.#last || !canvas.clientWidth) return;
    const { description, bitmap } = this.#last;
    const density = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * density), Math.round(canvas.clientHeight * density)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, width, height);
    const place = fit(width, height, description.width, description.height);
    const { left, top, scale } = place;
    if (bitmap) pen.drawImage(bitmap, left, top, description.width * scale, description.height * scale);
    else this.#blank(pen, left, top, description, scale, density);
    if (this.#warm && description.heat) drawHeat(pen, description.heat, place);
    if (this.#rules) drawRules(pen, this.#rules, place, density, this.detailed);
    if (this.detailed) this.#trails.draw(pen, description.at, place, density, colorOf);
    description.boxes.forEach((box, i) => this.#box(pen, box, description.shapes?.[i], left, top, scale, density));
    if (this.#rules && this.detailed) drawCounts(pen, this.#rules, description.counts, place, density);
  }

  #pose(pen, keypoints, color, left, top, scale, line, density) {
    const at = keypoints.map(([x, y, sure]) => (sure >= SURE ? [left + x * scale, top + y * scale] : null));
    const limbs = new Path2D();
    for (const [a, b] of keypoints.length === 17 ? LIMBS : []) {
      if (!at[a] || !at[b]) continue;
      limbs.moveTo(...at[a]);
      limbs.lineTo(...at[b]);
    }
    const points = new Path2D();
    for (const [x, y] of at.filter(Boolean)) {
      points.moveTo(x + line * 1.3, y);
      points.arc(x, y, line * 1.3, 0, 2 * Math.PI);
    }
    outlined(pen, limbs, color, line, density);
    pen.fillStyle = color;
    pen.fill(points);
  }

  #blank(pen, left, top, description, scale, density) {
    const [width, height] = [description.width * scale, description.height * scale];
    pen.fillStyle = "#20262e";
    pen.fillRect(left, top, width, height);
    pen.fillStyle = "#aab4c0";
    pen.font = `${12 * density}px system-ui, sans-serif`;
    pen.textAlign = "center";
    pen.fillText("boxes only: no picture available", left + width / 2, top + height - 10 * density);
  }

  #box(pen, [x1, y1, x2, y2, score, label, track, said], shapes, left, top, scale, density) {
    const color = colorOf(label);
    const [x, y, width, height] = [left + x1 * scale, top + y1 * scale, (x2 - x1) * scale, (y2 - y1) * scale];
    const line = (this.detailed ? 2 : 1.5) * density;
    const frame = new Path2D();
    if (shapes?.oriented) trace(frame, shapes.oriented, left, top, scale);
    else frame.rect(x, y, width, height);
    pen.lineJoin = "round";
    if (shapes?.polygon?.length) {
      const outline = new Path2D();
      trace(outline, shapes.polygon, left, top, scale);
      pen.fillStyle = `${color}59`;
      pen.fill(outline);
      pen.strokeStyle = color;
      pen.lineWidth = line;
      pen.stroke(outline);
    }
    outlined(pen, frame, color, line, density);
    if (shapes?.keypoints) this.#pose(pen, shapes.keypoints, color, left, top, scale, line, density);
    if (!this.detailed && width < 34 * density) return;
    const size = (this.detailed ? 12 : 10) * density;
    pen.font = `600 ${size}px system-ui, sans-serif`;
    pen.textAlign = "left";
    const narrow = this.canvas.clientWidth < 520;
    const name = said?.length ? `${label} ${said.join(" ")}` : label;
    const text = this.detailed ? `${track ? `#${short(track)} ` : ""}${name}${narrow ? "" : ` ${Math.round(score * 100)}`}` : name;
    const [wide, high] = [pen.measureText(text).width + size * 0.7, size * 1.45];
    const above = y - high >= top ? y - high : y;
    const beside = Math.max(0, Math.min(x - line / 2, this.canvas.width - wide));
    pen.fillStyle = color;
    pen.beginPath();
    pen.roundRect(beside, above, wide, high, 2.5 * density);
    pen.fill();
    pen.fillStyle = "#0b0e12";
    pen.fillText(text, beside + size * 0.35, above + size * 1.08);
  }
}

// A coloured stroke that stands out from light grounds, too.
function outlined(pen, path, color, line, density) {
  pen.strokeStyle = "rgb(0 0 0 / 45%)";
  pen.lineWidth = line + 2 * density;
  pen.stroke(path);
  pen.strokeStyle = color;
  pen.lineWidth = line;
  pen.stroke(path);
}

// Adds a closed polygon of points in the picture's pixels.
function trace(path, points, left, top, scale) {
  points.forEach(([x, y], i) => path[i ? "lineTo" : "moveTo"](left + x * scale, top + y * scale));
  path.closePath();
}

// "2 persons, 1 car", for screen readers.
export function told(boxes) {
  const counts = new Map();
  for (const box of boxes) counts.set(box[5], (counts.get(box[5]) ?? 0) + 1);
  const words = [...counts].sort((a, b) => b[1] - a[1]).map(([label, n]) => `${n} ${label}`);
  return words.length ? words.join(", ") : "nothing";
}
