"""Evidence of events: clips cut from the compressed packets of a stream, snapshots, and how long they are kept."""
