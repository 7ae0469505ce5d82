"""The contract suites: what every kind of a part promises, as test classes for pytest.

They run on streamd's own kinds and, in the tests of another package, on that package's:

    from streamd.testing.sinks import Reader, SinkContract

    class TestUdp(SinkContract):
        kind = "udp"

        def contract(self, folder): ...

All tests of the suite are inherited, those of later versions included. docs/extending.md says what each suite needs to
be told. Nothing else in streamd imports this package, and only it needs pytest: `pip install 'streamd[testing]'`.
"""

from __future__ import annotations

try:
    import pytest
except ImportError as error:
    raise ImportError("streamd.testing needs pytest: pip install 'streamd[testing]'") from error

# So that a failed assertion shows its values, as in a file of tests.
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in ("sources", "engines", "heads", "trackers", "sinks")))
