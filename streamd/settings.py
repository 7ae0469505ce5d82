"""The base of every configuration class, whichever room it lives in."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """A strict, frozen configuration section: an unknown key is an error, and so is a wrong type.

    Every field carries `Field(description=…)`: the configuration reference and the JSON schema are made of them.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=False,
        validate_default=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )


Seconds = Annotated[float, Field(gt=0, le=86_400)]
Milliseconds = Annotated[float, Field(ge=0, le=60_000)]
Unit = Annotated[float, Field(ge=0, le=1)]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
"""A name that is safe in a topic, a metric label and a file name."""
