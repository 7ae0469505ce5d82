"""`streamd schema`: prints the JSON Schema of the configuration or of the messages."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser("schema", help="print the JSON Schema of the configuration or of the messages")
    p.add_argument("what", choices=("config", "message"), nargs="?", default="config")


def run(args: argparse.Namespace) -> int:
    """Prints the schema."""
    if args.what == "config":
        from streamd.config import Config

        schema = Config.model_json_schema()
    else:
        from streamd.sinks.message import json_schema

        schema = json_schema()
    print(json.dumps(schema, indent=2))
    return 0
