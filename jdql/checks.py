"""The rules that most settings obey, with the line that a wrong one is answered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

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


def finite(config: Any, *names: str) -> None:
    """Refuses settings that are no finite numbers; one may be traced, and then passes.

    Raises:
      ValueError: one is infinite or not a number.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, float | int) and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}")
