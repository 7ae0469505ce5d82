"""What the suites of all parts have in common."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from pydantic_core import PydanticCustomError

from streamd.settings.registry import Registry


class Contract:
    """The base of every suite. A class that derives from a suite names its kind."""

    kind: ClassVar[str] = ""
    """The kind to be tested. If it is not one of streamd's own, its package must be installed."""
    registry: ClassVar[Registry[Any]]

    @pytest.fixture(autouse=True)
    def known(self) -> type[Any]:
        """The settings of the kind. From here on it is known whose it is, and it is treated as in the daemon."""
        return self._found()

    def _found(self) -> type[Any]:
        if not self.kind:
            pytest.fail(f'{type(self).__name__}: name the kind to be tested, as in kind = "udp"', pytrace=False)
        try:
            found: type[Any] = self.registry.find(self.kind)
        except PydanticCustomError as error:
            group = f"{self.registry.group}.{self.registry.contract}"
            where = f"its package must be installed, with an entry point {self.kind} in the group {group}"
            pytest.fail(f"{self.registry.noun} kind {self.kind}: {error.message()} ({where})", pytrace=False)
        return found

    def _checked(self, settings: Any) -> Any:
        """What `contract` returned, if these are settings of the kind."""
        known = self._found()
        name = type(self).__name__
        assert isinstance(settings, known), f"{name}.contract gives {type(settings).__name__}, not {known.__name__}"
        return settings

    def test_it_was_written_for_this_version_of_the_contract(self) -> None:
        """The number is in the entry point's group."""
        wanted = self.registry.contract
        for offer in self.registry.offers().get(self.kind, ()):
            assert offer.contract == wanted, f"put the entry point into the group {self.registry.group}.{wanted}"
