"""The model room: what is done with a model before the daemon runs it: inspect, quantize, evaluate. Offline only.

The daemon never imports it. It reaches engine, heads and sources, so that every figure comes from the daemon's own
letterbox, engine and decoding.
"""
