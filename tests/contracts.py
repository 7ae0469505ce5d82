"""The contract suites of `streamd.testing` on the built-in kinds: a class of tests for each, from its own test file."""

from __future__ import annotations

import importlib
from typing import Any

from streamd.settings.registry import Registry


def classes(
    suite: type[Any], registry: Registry[Any], package: str = "", name: str = "", method: str = ""
) -> dict[str, type[Any]]:
    """A class of tests for each built-in kind of a part, by the name of the class.

    Args:
        suite: the suite of the part.
        registry: the kinds.
        package: where the kind's own test file is. Default: the suite needs nothing of it.
        name: what the suite needs of that file.
        method: the suite's name for it. Default: the same.
    """
    found = {}
    for kind in registry.builtin():
        members: dict[str, Any] = {"kind": kind}
        if name:
            members[method or name] = staticmethod(gives(package, kind, name))
        found[f"Test_{kind}"] = type(f"Test_{kind}", (suite,), members)
    return found


def gives(package: str, kind: str, name: str) -> Any:
    """What the kind's own test file gives the contract suite.

    Raises:
        LookupError: nothing; says what to write and where.
    """
    module = f"{package}.test_{kind}"
    file = f"{module.replace('.', '/')}.py"
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise LookupError(
            f"kind {kind} has no test: write {file}, with {name} as its contract suite wants it"
        ) from None
    if found is None:
        raise LookupError(f"kind {kind} gives the contract suite nothing: write {name} in {file}")
    return found
