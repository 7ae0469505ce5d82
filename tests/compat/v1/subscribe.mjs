// Prints states, gaps and what every camera sees.
//
//   npm install && node subscribe.mjs [tcp://127.0.0.1:5555]

import { Subscriber } from "zeromq";

const socket = new Subscriber();
socket.connect(process.argv[2] ?? "tcp://127.0.0.1:5555"); // again and again by itself
socket.subscribe("streamd/1/"); // or "streamd/1/gate/" for one camera

const expected = new Map(); // stream -> the seq that comes next
let boot = "";

for await (const [topic, payload] of socket) {
  const message = JSON.parse(payload.toString());
  if (message.boot_id !== boot) {
    boot = message.boot_id; // streamd was started again: its counts begin anew
    expected.clear();
  }
  const { stream } = message;
  if (topic.toString().endsWith("/status")) {
    console.log(`${stream}: is ${message.state} ${message.reason}`);
    continue;
  }
  const missing = expected.has(stream) ? message.seq - expected.get(stream) : 0;
  if (missing > 0) {
    const dropped = Math.min(missing, message.dropped);
    console.log(`${stream}: ${dropped} dropped by streamd, ${missing - dropped} lost on the way`);
  }
  expected.set(stream, message.seq + 1);
  const seen = message.detections.map((d) => `${d.label} ${d.score.toFixed(2)}`);
  console.log(`${stream}: ${message.seq} ${seen.join(", ") || "nothing"}`);
}
