"""Mutated input for every part of streamd that reads data from outside. See tools/fuzz.py."""
