"""Worker processes: groups of streams in processes of their own, behind one publisher and one metrics port.

One Python process holds the interpreter lock for about 0.5 ms per frame, which limits it to one or two thousand frames
a second, however fast the GPU is. With `workers: N`, the parent (`supervisor`) starts N children (`child`), each a
complete daemon with its share of the streams, its own decoders and its own engine. Children pass encoded messages to
the parent (`relay`), which publishes them (`forward`), and report their metrics and health once a second (`report`),
which the parent shows as its own. A child that dies takes down only its own streams, and is restarted."""
