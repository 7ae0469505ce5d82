"""Worker processes: groups of streams in processes of their own, one publisher and one metrics port before them all.

One Python process holds the interpreter's lock for some 0.5 ms a frame, which bounds it to one or two thousand frames a
second however fast the GPU is. With `workers: N` the parent (`fleet`) starts N children (`child`), each a whole daemon
with its share of the streams, its own decoders and its own engine. Children hand encoded messages to the parent
(`sinks.relay`), which publishes them (`forward`), and report their metrics and health once a second (`report`), which
the parent shows as its own. A child that dies takes its own streams down, no others, and is started again.
"""
