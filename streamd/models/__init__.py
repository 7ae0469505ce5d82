"""Offline work on models before the daemon runs them: inspect, quantize, evaluate.

The daemon never imports this package. It uses engine, heads and sources, so that every figure comes from the daemon's
own letterbox, engine and decoding.
"""
