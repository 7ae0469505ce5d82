"""Scales pictures on the host: the letterbox on the decoder's own planes, and its reference implementation."""
