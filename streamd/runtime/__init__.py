"""The daemon at work: model instances, streams, reloads, and what the service manager is told."""
