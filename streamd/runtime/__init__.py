"""The running daemon: model instances, streams, reloads, and communication with the service manager."""
