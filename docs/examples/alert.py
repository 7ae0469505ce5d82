#!/usr/bin/env python3
"""Prints an alert when a person enters a zone. Needs: pip install pyzmq

python alert.py [tcp://127.0.0.1:5555 [person]]
"""

import json
import sys

import zmq

# Crossed the border, was in the zone when first seen, or was there before the camera came back.
BEGINS = ("zone_entered", "zone_appeared", "zone_resumed")
endpoint, label = (sys.argv[1:] + ["tcp://127.0.0.1:5555", "person"][len(sys.argv) - 1 :])[:2]
socket = zmq.Context().socket(zmq.SUB)
socket.subscribe("streamd/event/1/")  # or "streamd/event/1/gate" for one camera
socket.connect(endpoint)  # reconnects automatically
while True:
    topic, payload = socket.recv_multipart()
    event = json.loads(payload)
    if event["kind"] == "begin" and event["type"] in BEGINS and event["label"] == label:
        print(f"ALERT {event['stream']}: {label} in {event['rule']} ({event['type']}, {event['id']})", flush=True)
