// The last minute of each camera, from the counters received once a second. Kept only here, in the browser.

const KEPT_S = 61;

// Counters by reason that have grown between two samples, and by how much.
const grown = ([first, last], what) =>
  Object.entries(last[what] ?? {})
    .map(([why, n]) => [why, n - (first[what]?.[why] ?? 0)])
    .filter(([, n]) => n > 0);

export class History {
  #boot = "";
  #samples = new Map();
  bounds = [];

  add(state) {
    if (state.boot_id !== this.#boot) this.#samples.clear();
    this.#boot = state.boot_id;
    this.bounds = state.bounds;
    const present = new Set();
    for (const stream of state.streams) {
      present.add(stream.stream);
      const samples = this.#samples.get(stream.stream) ?? [];
      this.#samples.set(stream.stream, samples);
      const buckets = stream.latency.buckets;
      if (samples.at(-1)?.at === state.now) samples.pop(); // the daemon gave the same answer again
      samples.push({
        at: state.now,
        published: stream.published ?? 0,
        received: stream.received ?? 0,
        dropped: Object.values(stream.dropped).reduce((a, b) => a + b, 0),
        looked: stream.looked,
        glanced: stream.glanced,
        sum: stream.latency.sum ?? 0,
        count: buckets.at(-1) ?? 0,
        buckets,
      });
      while (samples[0].at < state.now - KEPT_S) samples.shift();
    }
    for (const gone of [...this.#samples.keys()].filter((name) => !present.has(name))) this.#samples.delete(gone);
  }

  // First and last sample of the last `seconds`.
  #ends(name, seconds) {
    const samples = this.#samples.get(name) ?? [];
    const last = samples.at(-1);
    const first = samples.find((s) => s.at >= last.at - seconds - 0.5);
    return last && first !== last ? [first, last] : null;
  }

  fps(name, seconds = 5) {
    const ends = this.#ends(name, seconds);
    return ends && (ends[1].published - ends[0].published) / (ends[1].at - ends[0].at);
  }

  // Share of the frames captured in the last minute that were dropped.
  dropped(name) {
    const ends = this.#ends(name, 60);
    if (!ends) return null;
    const received = ends[1].received - ends[0].received;
    return received > 0 ? Math.min(1, (ends[1].dropped - ends[0].dropped) / received) : 0;
  }

  // Share of the frames of the last minute that the network has looked at, and for which reasons it did, or did not, in
  // the last seconds, with the share of each: the most frequent one first. Null where it looks at all of them.
  gate(name, seconds = 5) {
    const minute = this.#ends(name, 60);
    if (!minute) return null;
    const looked = grown(minute, "looked").reduce((sum, [, n]) => sum + n, 0);
    const glanced = grown(minute, "glanced").reduce((sum, [, n]) => sum + n, 0);
    if (!looked && !glanced) return null;
    const ends = this.#ends(name, seconds);
    const now = [...grown(ends, "looked"), ...grown(ends, "glanced")].sort((a, b) => b[1] - a[1]);
    return { share: looked / (looked + glanced), now: now.map(([why, n]) => [why, n / now.reduce((sum, [, each]) => sum + each, 0)]) };
  }

  latency(name, seconds = 5) {
    const ends = this.#ends(name, seconds);
    const frames = ends ? ends[1].count - ends[0].count : 0;
    return frames > 0 ? (ends[1].sum - ends[0].sum) / frames : null;
  }

  // Like Prometheus's histogram_quantile: linear within a bucket.
  quantile(share, name, seconds = 60) {
    const ends = this.#ends(name, seconds);
    if (!ends) return null;
    const counts = ends[1].buckets.map((n, i) => n - (ends[0].buckets[i] ?? 0));
    const rank = share * (counts.at(-1) ?? 0);
    if (!rank) return null;
    const at = counts.findIndex((n) => n >= rank);
    if (at >= this.bounds.length) return this.bounds.at(-1);
    const below = at ? counts[at - 1] : 0;
    const low = at ? this.bounds[at - 1] : 0;
    return low + ((this.bounds[at] - low) * (rank - below)) / (counts[at] - below);
  }

  // [[seconds ago, mean latency in seconds or null], …], oldest first.
  series(name) {
    const samples = this.#samples.get(name) ?? [];
    const now = samples.at(-1)?.at;
    return samples.slice(1).map((s, i) => {
      const frames = s.count - samples[i].count;
      return [now - s.at, frames > 0 ? (s.sum - samples[i].sum) / frames : null];
    });
  }
}

const SHORTEST = 4; // samples that make a line and not a stray tick

// A polyline's path in a box of `width` × `height`; a gap where a value is missing. The right edge is now, the left one
// `seconds` ago.
export function path(series, top, width, height, seconds = 60) {
  if (series.length < SHORTEST) return "";
  let pen = false;
  let out = "";
  for (const [age, value] of series) {
    if (value == null) {
      pen = false;
      continue;
    }
    const x = width * (1 - age / seconds);
    const y = height * (1 - Math.min(1, value / top));
    out += `${pen ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    pen = true;
  }
  return out;
}
