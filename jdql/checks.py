"""The two rules that most settings obey, with the line that a wrong one is answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def one_of(setting: str, name: str, options: Mapping[str, T]) -> T:
    """The option of that name.

    Args:
      setting: what the setting is called, for the message.
      name: a key of `options`.
      options: by name.

    Raises:
      ValueError: there is none.
    """
    if name not in options:
        raise ValueError(f"{setting} must be one of {sorted(options)}, got {name!r}")
    return options[name]


def at_least(setting: str, value: int, least: int = 1) -> int:
    """Returns the value; raises ValueError where it is below `least`."""
    if value < least:
        raise ValueError(f"{setting} must be at least {least}, got {value}")
    return value
