#!/usr/bin/env python3
"""Writes events from standard input, one JSON object a line, to a table of an SQLite database. Needs Python alone.

usage: streamd events --json --follow CONFIG | events_to_sqlite.py DATABASE

An event that is there already is left alone, so that it may run again over the same events.
"""

from __future__ import annotations

import json
import sqlite3
import sys

TABLE = """
CREATE TABLE IF NOT EXISTS events (
  log_id TEXT, stream TEXT, event_seq INTEGER, id TEXT, kind TEXT, type TEXT, rule TEXT, label TEXT, at REAL,
  details TEXT, PRIMARY KEY (log_id, stream, event_seq)
)"""
COLUMNS = ("log_id", "stream", "event_seq", "id", "kind", "type", "rule", "label", "at")


def main() -> None:
    """Runs until the input ends."""
    connection = sqlite3.connect(sys.argv[1], isolation_level=None)
    connection.execute(TABLE)
    for line in sys.stdin:
        event = json.loads(line)
        values = [event[column] for column in COLUMNS] + [json.dumps(event["details"])]
        connection.execute("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)


if __name__ == "__main__":
    main()
