// Prints an alert when a person enters a zone.
//
//   npm install && node alert.mjs [tcp://127.0.0.1:5555 [person]]

import { Subscriber } from "zeromq";

// Crossed the border, was in the zone when first seen, or was there before the camera came back.
const BEGINS = ["zone_entered", "zone_appeared", "zone_resumed"];
const [endpoint = "tcp://127.0.0.1:5555", label = "person"] = process.argv.slice(2);

const socket = new Subscriber();
socket.connect(endpoint); // reconnects automatically
socket.subscribe("streamd/event/1/"); // or "streamd/event/1/gate" for one camera

for await (const [, payload] of socket) {
  const event = JSON.parse(payload.toString());
  if (event.kind === "begin" && BEGINS.includes(event.type) && event.label === label) {
    console.log(`ALERT ${event.stream}: ${label} in ${event.rule} (${event.type}, ${event.id})`);
  }
}
