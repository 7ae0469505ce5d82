#!/usr/bin/env python3
"""Prints the detections of every camera. Needs: pip install pyzmq

python subscribe.py [tcp://127.0.0.1:5555]
"""

import argparse
import json

import zmq

parser = argparse.ArgumentParser(description="Prints the detections of every camera.")
parser.add_argument("endpoint", nargs="?", default="tcp://127.0.0.1:5555", help="zmq sink (default %(default)s)")
endpoint = parser.parse_args().endpoint
socket = zmq.Context().socket(zmq.SUB)
socket.subscribe("streamd/1/")  # or "streamd/1/gate/" for one camera
socket.connect(endpoint)
while True:
    topic, payload = socket.recv_multipart()
    message = json.loads(payload)
    if topic.endswith(b"/detections"):
        seen = [f"{d['label']} {d['score']:.2f} at {d['box']}" for d in message["detections"]]
        print(message["stream"], message["seq"], "; ".join(seen) or "nothing", flush=True)
