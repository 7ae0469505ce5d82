// What is drawn over a picture besides boxes: zones, lines, their counts, and the paths of objects.

const PATH_S = 6;
const LEAST_NAME = 3; // letters of a name that is too long for the picture
const COLORS = ["#7cf0c8", "#ffd166", "#9ecbff", "#ff9fb2", "#d7b8ff", "#b9f27c"];

export function ruleColor(name) {
  let hash = 7;
  for (const character of name) hash = (hash * 31 + character.codePointAt(0)) >>> 0;
  return COLORS[(hash % 101) % COLORS.length];
}

// Where a picture lies in an area: centred, its aspect ratio kept.
export function fit(areaWidth, areaHeight, width, height) {
  const scale = Math.min(areaWidth / width, areaHeight / height);
  return { left: (areaWidth - width * scale) / 2, top: (areaHeight - height * scale) / 2, width: width * scale, height: height * scale, scale };
}

const sum = (byLabel) => Object.values(byLabel ?? {}).reduce((a, b) => a + b, 0);

// "3 inside", "in 4 · out 2", or without the names of the directions "4 · 2"; empty where nothing is known.
export function countText(kind, report, named = true) {
  if (!report) return "";
  if (kind === "zone") return report.occupancy == null ? "" : `${report.occupancy} inside${report.stale ? " (stale)" : ""}`;
  return Object.entries(report.crossings)
    .map(([way, labels]) => `${named ? `${way} ` : ""}${sum(labels)}`)
    .join(" · ");
}

export function uncertain(report) {
  return Object.values(report?.uncertain ?? {}).reduce((total, labels) => total + sum(labels), 0);
}

export const total = (report) => sum(report?.begun);

function stroke(pen, path, color, width, density) {
  pen.lineJoin = pen.lineCap = "round";
  pen.strokeStyle = "rgb(0 0 0 / 55%)";
  pen.lineWidth = width + 2 * density;
  pen.stroke(path);
  pen.strokeStyle = color;
  pen.lineWidth = width;
  pen.stroke(path);
}

// "name: text" with the first text and as much of the name as there is room for.
function shortened(pen, name, texts, room) {
  for (const text of texts) {
    for (let n = name.length; n >= LEAST_NAME || n === name.length; n -= 1) {
      const words = [n < name.length ? `${name.slice(0, n)}…` : name, text].filter(Boolean).join(": ");
      if (pen.measureText(words).width <= room) return words;
    }
  }
  return texts.at(-1);
}

// A name and a text above a point, inside of the picture and beside the tags that are there already.
function tag(pen, name, texts, [x, y], color, size, place, there) {
  pen.font = `600 ${size}px system-ui, sans-serif`;
  pen.textAlign = "left";
  const words = shortened(pen, name, texts, place.width - size - 4);
  const [wide, high] = [pen.measureText(words).width + size, size * 1.6];
  const left = Math.max(place.left + 2, Math.min(x - wide / 2, place.left + place.width - wide - 2));
  let top = Math.max(y - high - size * 0.4, place.top + 2);
  const hit = () => there.find((other) => left < other.left + other.wide && other.left < left + wide && top < other.top + high && other.top < top + high);
  for (let other = hit(), tries = 0; other && tries < there.length; other = hit(), tries += 1) top = other.top + high + 2;
  there.push({ left, top, wide });
  pen.fillStyle = "rgb(8 11 15 / 82%)";
  pen.beginPath();
  pen.roundRect(left, top, wide, high, size * 0.3);
  pen.fill();
  pen.fillStyle = color;
  pen.fillText(words, left + size / 2, top + size * 1.15);
}

// The way of a line's first direction: from its left to its right, going from the first point to the second.
export function arrow([ax, ay], [bx, by], length) {
  const [dx, dy] = [bx - ax, by - ay];
  const far = Math.hypot(dx, dy) || 1;
  const [nx, ny] = [-dy / far, dx / far];
  const [mx, my] = [(ax + bx) / 2, (ay + by) / 2];
  const [tx, ty] = [mx + nx * length, my + ny * length];
  const wing = length * 0.36;
  const back = (side) => [tx - nx * wing + side * ny * wing, ty - ny * wing - side * nx * wing];
  return { from: [mx, my], tip: [tx, ty], wings: [back(1), back(-1)] };
}

const HEAT_ALPHA = 0.75;

// Where something moved lately: from nothing over blue and red to yellow.
export function drawHeat(pen, { rows, columns, cells }, place) {
  const levels = Uint8Array.from(atob(cells), (character) => character.charCodeAt(0));
  const image = new ImageData(columns, rows);
  levels.forEach((level, i) => image.data.set([Math.min(255, 2 * level), Math.max(0, 2 * level - 255), Math.max(0, 255 - 2 * level), HEAT_ALPHA * Math.min(255, 2 * level)], 4 * i));
  const small = new OffscreenCanvas(columns, rows);
  small.getContext("2d").putImageData(image, 0, 0);
  pen.drawImage(small, place.left, place.top, place.width, place.height);
}

export function drawRules(pen, rules, place, density, detailed) {
  const at = ([x, y]) => [place.left + x * place.width, place.top + y * place.height];
  const width = (detailed ? 2 : 1.25) * density;
  for (const { name, points } of rules?.zones ?? []) {
    const path = new Path2D();
    points.map(at).forEach(([x, y], i) => (i ? path.lineTo(x, y) : path.moveTo(x, y)));
    path.closePath();
    pen.globalAlpha = 0.12;
    pen.fillStyle = ruleColor(name);
    pen.fill(path);
    pen.globalAlpha = 1;
    stroke(pen, path, ruleColor(name), width, density);
  }
  for (const { name, points } of rules?.lines ?? []) {
    const [a, b] = points.map(at);
    const path = new Path2D();
    path.moveTo(...a);
    path.lineTo(...b);
    const { from, tip, wings } = arrow(a, b, (detailed ? 20 : 10) * density);
    for (const [start, end] of [[from, tip], [wings[0], tip], [wings[1], tip]]) {
      path.moveTo(...start);
      path.lineTo(...end);
    }
    stroke(pen, path, ruleColor(name), width * 1.25, density);
  }
}

// Names and counts, at the highest point of each.
export function drawCounts(pen, rules, counts, place, density) {
  const there = [];
  for (const kind of ["zone", "line"]) {
    for (const { name, points } of rules?.[`${kind}s`] ?? []) {
      const [x, y] = points.reduce((best, point) => (point[1] < best[1] ? point : best));
      const at = [place.left + x * place.width, place.top + y * place.height];
      const report = counts?.[`${kind}s`]?.[name];
      tag(pen, name, [countText(kind, report), countText(kind, report, false)], at, ruleColor(name), 12 * density, place, there);
    }
  }
}

// Where each object stood in the last seconds: the middle of its box's lower side.
export class Trails {
  #paths = new Map();
  #key = "";

  add({ epoch, width, height, at, boxes }) {
    const key = `${epoch} ${width} ${height}`;
    if (key !== this.#key) this.#paths.clear();
    this.#key = key;
    for (const [x1, , x2, y2, , label, track] of boxes) {
      if (!track) continue;
      const path = this.#paths.get(track) ?? { label, points: [] };
      path.points.push([at, (x1 + x2) / 2, y2]);
      this.#paths.set(track, path);
    }
    for (const [track, { points }] of this.#paths) {
      while (points.length && (points[0][0] < at - PATH_S || points[0][0] > at)) points.shift();
      if (!points.length) this.#paths.delete(track);
    }
  }

  draw(pen, now, place, density, colorOf) {
    pen.lineCap = pen.lineJoin = "round";
    pen.lineWidth = 2.5 * density;
    for (const { label, points } of this.#paths.values()) {
      pen.strokeStyle = colorOf(label);
      for (let i = 1; i < points.length; i++) {
        const [[, ax, ay], [at, bx, by]] = [points[i - 1], points[i]];
        pen.globalAlpha = Math.max(0.08, 0.9 * (1 - (now - at) / PATH_S));
        pen.beginPath();
        pen.moveTo(place.left + ax * place.scale, place.top + ay * place.scale);
        pen.lineTo(place.left + bx * place.scale, place.top + by * place.scale);
        pen.stroke();
      }
    }
    pen.globalAlpha = 1;
  }
}
