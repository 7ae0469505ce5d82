"""A fleet on Ray: what starts, attaches to and ends the daemons of several boxes, and hosts their coordinator.

`keeper` is the process that keeps one box's daemon running; it belongs to no other process, so that neither Ray nor the
command that started the fleet takes the daemon along. `box` attaches to the daemon by its control socket and carries
orders and reports; `host` surrounds the coordinator (`streamd.fleet.coordinator`) with a clock, a configuration and an
HTTP port; `actors` runs both as Ray actors, and `cluster` is what the command line needs of Ray. Ray is imported in
functions only."""
