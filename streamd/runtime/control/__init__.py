"""A daemon that is one box of a fleet: it runs the streams that it is told to, by a Unix socket.

`server` speaks the protocol: one JSON object a line, one answer for each. `station` carries out orders on the daemon's
main loop and reports; `client` is the other end. `python -m streamd.runtime.control` starts such a daemon. It goes on
with what it has while nobody is connected.
"""
