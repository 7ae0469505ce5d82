"""One kind for each part of streamd."""
