"""Mutated input for everything of streamd that reads what others wrote. See tools/fuzz.py."""
