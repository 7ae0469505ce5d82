"""Which kinds the contract suites (`tests/*/test_contract.py`) test, and where each kind's cases are.

By default, every built-in kind of a package, whose cases are in `tests/PACKAGE/test_KIND.py`. With
`pytest --case KIND=MODULE`, those kinds of other installed packages, whose cases are in MODULE.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from streamd.settings.registry import Registry

external: dict[str, str] = {}
"""Module of the cases by kind, as given by --case."""


def kinds(registry: Registry[Any]) -> list[str]:
    """The kinds to test."""
    if external:
        found = [kind for kind in external if kind in registry.plugins()]
        for kind in found:
            registry.find(kind)  # from here on, it is known whose it is, and treated as in the daemon
        return found
    return list(registry.builtin())


def cases(package: str, kind: str) -> ModuleType:
    """The module with the cases of a kind.

    Raises:
        ModuleNotFoundError: it does not exist.
    """
    return importlib.import_module(external.get(kind, f"tests.{package}.test_{kind}"))
