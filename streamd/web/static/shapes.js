// Zones and lines as data: their geometry, what is wrong with them, and the YAML of a configuration.

const NAME = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,62}$/;
const CLOSEST = 0.001; // shares of the picture, as `streamd check`
const SMALLEST = 0.00001;

export const least = (shape) => (shape.kind === "zone" ? 3 : 2);
export const clamp = (value) => Math.min(1, Math.max(0, value));
// A thousandth of the picture: two pixels of Full HD.
export const rounded = ([x, y]) => [x, y].map((value) => Number(clamp(value).toFixed(3)));

// A point in words.
export const where = ([x, y]) => `${Math.round(x * 100)} %, ${Math.round(y * 100)} %`;

// The first free name of a kind: zone-1, zone-2, …
export function freeName(kind, shapes) {
  for (let n = 1; ; n++) if (!shapes.some((shape) => shape.name === `${kind}-${n}`)) return `${kind}-${n}`;
}

// From /rules and back. `rest` is what the editor does not edit: classes, schedule, times.
export function shapesOf(rules) {
  const read = (kind, { name, points, directions, ...rest }) => ({
    kind,
    name,
    points: points.map((point) => [...point]),
    ...(kind === "line" ? { directions: [...(directions ?? ["in", "out"])] } : {}),
    rest,
  });
  return [...(rules?.zones ?? []).map((zone) => read("zone", zone)), ...(rules?.lines ?? []).map((line) => read("line", line))];
}

const between = (a, b, c) => Math.min(a, b) <= c && c <= Math.max(a, b);
const turn = ([ax, ay], [bx, by], [cx, cy]) => Math.sign((bx - ax) * (cy - ay) - (by - ay) * (cx - ax));

export function intersect(a, b, c, d) {
  const [abc, abd, cda, cdb] = [turn(a, b, c), turn(a, b, d), turn(c, d, a), turn(c, d, b)];
  if (abc !== abd && cda !== cdb) return true;
  const on = (p, q, r, side) => side === 0 && between(p[0], q[0], r[0]) && between(p[1], q[1], r[1]);
  return on(a, b, c, abc) || on(a, b, d, abd) || on(c, d, a, cda) || on(c, d, b, cdb);
}

function crossesItself(points) {
  const n = points.length;
  for (let i = 0; i < n; i++) {
    for (let k = i + 2; k < n; k++) {
      if (i === 0 && k === n - 1) continue; // neighbours share a corner
      if (intersect(points[i], points[i + 1], points[k], points[(k + 1) % n])) return true;
    }
  }
  return false;
}

export function area(points) {
  return Math.abs(points.reduce((sum, [x, y], i) => sum + x * points[(i + 1) % points.length][1] - points[(i + 1) % points.length][0] * y, 0)) / 2;
}

const distance = ([ax, ay], [bx, by]) => Math.hypot(ax - bx, ay - by);

// What `streamd check` would say of a shape among others; empty if it is sound.
export function problemOf(shape, shapes) {
  if (!NAME.test(shape.name)) return "The name has to be 1 to 63 letters (a to z), digits, dots, dashes or underscores.";
  if (shapes.some((other) => other !== shape && other.name === shape.name)) return "Another zone or line has this name.";
  if (shape.kind === "line") {
    if (distance(...shape.points) < CLOSEST) return "Both ends are in the same place.";
    if (!shape.directions.every((direction) => NAME.test(direction))) return "Directions are named like lines: letters (a to z), digits, dots, dashes or underscores.";
    if (shape.directions[0] === shape.directions[1]) return "Both directions have the same name.";
    return "";
  }
  if (shape.points.some((point, i) => distance(point, shape.points[(i + 1) % shape.points.length]) < CLOSEST)) return "Two corners are in the same place.";
  if (crossesItself(shape.points)) return "Its edges cross each other.";
  return area(shape.points) < SMALLEST ? "Its corners are on one line." : "";
}

const RESERVED = /^(?:true|false|yes|no|on|off|y|n|null|nan|inf)$/i;

function scalar(value) {
  if (typeof value === "string" && /^[A-Za-z][\w-]*$/.test(value) && !RESERVED.test(value)) return value;
  return JSON.stringify(value); // a quoted string of JSON is one of YAML, too
}

function flow(value) {
  if (Array.isArray(value)) return `[${value.map(flow).join(", ")}]`;
  if (value !== null && typeof value === "object") {
    return `{${Object.entries(value).map(([key, each]) => `${scalar(key)}: ${flow(each)}`).join(", ")}}`;
  }
  return scalar(value);
}

// The keys `zones` and `lines` of a stream.
export function yaml(shapes) {
  const out = [];
  for (const kind of ["zone", "line"]) {
    const chosen = shapes.filter((shape) => shape.kind === kind);
    if (chosen.length) out.push(`${kind}s:`);
    for (const { name, points, directions, rest } of chosen) {
      out.push(`  - name: ${scalar(name)}`, `    points: ${flow(points)}`);
      if (directions) out.push(`    directions: ${flow(directions)}`);
      for (const [key, value] of Object.entries(rest)) out.push(`    ${key}: ${flow(value)}`);
    }
  }
  return out.length ? `${out.join("\n")}\n` : "";
}
