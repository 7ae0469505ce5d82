// Prints the states, gaps and detections of every camera.
//
//   npm install && node subscribe.mjs [tcp://127.0.0.1:5555]

import { Subscriber } from "zeromq";

const socket = new Subscriber();
socket.connect(process.argv[2] ?? "tcp://127.0.0.1:5555"); // reconnects automatically
socket.subscribe("streamd/1/"); // or "streamd/1/gate/" for one camera

const expected = new Map(); // stream -> the next seq
let boot = "";

for await (const [topic, payload] of socket) {
  const message = JSON.parse(payload.toString());
  if (message.boot_id !== boot) {
    boot = message.boot_id; // streamd was restarted: its counters start from zero
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
