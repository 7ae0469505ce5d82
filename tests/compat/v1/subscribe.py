#!/usr/bin/env python3
"""Prints what every camera sees. Needs: pip install pyzmq

python subscribe.py [tcp://127.0.0.1:5555]
"""

import json
import sys

import zmq

socket = zmq.Context().socket(zmq.SUB)
socket.subscribe("streamd/1/")  # or "streamd/1/gate/" for one camera
socket.connect(sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5555")
while True:
    topic, payload = socket.recv_multipart()
    message = json.loads(payload)
    if topic.endswith(b"/detections"):
        seen = [f"{d['label']} {d['score']:.2f} at {d['box']}" for d in message["detections"]]
        print(message["stream"], message["seq"], "; ".join(seen) or "nothing", flush=True)
