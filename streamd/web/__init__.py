"""The web page on the metrics port: a wall of cameras, and a page for each, for whoever looks.

While nobody looks, a frame costs one check of an empty mapping (`tap`); while somebody does, a bounded number of
frames a second is scaled down where it is at hand and becomes a JPEG only when a viewer is ready to take it.
"""
