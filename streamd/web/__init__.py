"""The web page on the metrics port: a wall of all cameras, and a page for each.

While nobody is watching, a frame costs one check of an empty mapping (`tap`). While somebody is, a limited number of
frames per second is scaled down, and encoded as JPEG only when a viewer is ready for it.
"""
