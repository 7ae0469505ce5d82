// Drops what a box of a fleet still sends of a stream that another box has by now.
//
//   import { Newest } from "./newest.mjs";
//   const newest = new Newest();
//   ...
//   if (newest.accepts(message)) { ... } // decoded JSON: detections, status, counts, event, or a CloudEvent
//
// One object for all streams and all boxes that you subscribe to. Messages of a single daemon, which have no generation,
// are always accepted. Needs nothing but Node.js.

export class Newest {
  #newest = new Map(); // stream -> its generation, and the time of the first message that had it (Unix seconds)

  // Whether to use the message; to be asked about each one, in the order of arrival.
  accepts(message) {
    if (message.data !== null && typeof message.data === "object") message = message.data; // an event as a CloudEvent
    const { generation, stream } = message;
    if (!generation) return true;
    const known = this.#newest.get(stream) ?? { generation: 0, since: 0 };
    const isEvent = "event_seq" in message;
    const at = isEvent ? message.at : (message.captured_at ?? message.published_at ?? known.since);
    if (generation < known.generation) {
      // Events are delivered until they arrive: one that happened before the other box began is late, not double.
      return isEvent && at < known.since;
    }
    // The end of an event of a lost box has the time at which that box was last heard of.
    if (generation > known.generation && !(isEvent && message.details.reason === "node_lost")) {
      this.#newest.set(stream, { generation, since: at });
    }
    return true;
  }
}
