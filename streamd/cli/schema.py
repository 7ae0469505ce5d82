"""`streamd schema`: prints the JSON Schema of the configuration or of the messages."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser(
        "schema",
        help="print the JSON Schema of the configuration or of the messages",
        description="Prints the JSON Schema of the configuration, for an editor that completes and checks YAML, or of "
        "the messages.",
    )
    kinds = ("config", "message")
    p.add_argument(
        "what",
        metavar="|".join(kinds),
        choices=kinds,
        nargs="?",
        default="config",
        help="which schema (default config)",
    )
    p.add_argument(
        "--plugins", action="store_true", help="also describe the kinds of installed packages, which are imported"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the schema."""
    if args.what == "config":
        import contextlib

        from pydantic_core import PydanticCustomError

        from streamd.config import Config
        from streamd.errors import ConfigError
        from streamd.settings.registry import with_plugins

        try:
            with with_plugins() if args.plugins else contextlib.nullcontext():
                schema = Config.model_json_schema()
        except PydanticCustomError as error:
            raise ConfigError(f"--plugins: {error.message()}") from error
    else:
        from streamd.sinks.message import json_schema

        schema = json_schema()
    print(json.dumps(schema, indent=2))
    return 0
