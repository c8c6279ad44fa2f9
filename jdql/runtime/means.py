"""Metrics of several updates: their means, and the first that is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Means:
    """Sums up (S, updates) arrays by metric name, and gives their means (S,).

    Updates are added one after another in float64, so that the result is the same to
    the bit however they are grouped, and what is not yet taken goes into
    a checkpoint: a resumed run gives the means of an unbroken one.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        """Starts empty, or with what `state` gave."""
        state = state or {"count": 0, "sums": {}}
        self._count: int = state["count"]
        self._sums = {name: np.array(sums) for name, sums in state["sums"].items()}

    def add(self, values: Mapping[str, NDArray]) -> None:
        """Adds the (S, updates) values of each metric."""
        for name, value in values.items():
            before = self._sums.get(name, np.zeros(len(value)))
            # cumsum, unlike sum, adds from left to right.
            terms = np.concatenate([before[:, None], value.astype(np.float64)], axis=1)
            self._sums[name] = np.cumsum(terms, axis=1)[:, -1]
        self._count += next(iter(values.values())).shape[1]

    def take(self) -> dict[str, NDArray[np.float64]]:
        """The means so far, (S,) each, and starts anew."""
        means = {name: sums / self._count for name, sums in self._sums.items()}
        self._count, self._sums = 0, {}
        return means

    def state(self) -> dict[str, Any]:
        """What JSON can hold, exactly, and `Means` goes on from."""
        sums = {name: sums.tolist() for name, sums in self._sums.items()}
        return {"count": self._count, "sums": sums}


def first_non_finite(values: Mapping[str, NDArray]) -> tuple[str, int, int] | None:
    """The metric, member and update of the earliest number that is none.

    Args:
      values: (S, updates) by metric name.

    Returns:
      Its name and its two indices; None where all numbers are finite.
    """
    found: list[tuple[int, str, int]] = []
    for name, value in values.items():
        bad = np.argwhere(~np.isfinite(value))
        if len(bad):
            member, update = bad[np.argmin(bad[:, 1])].tolist()
            found.append((update, name, member))
    if not found:
        return None
    update, name, member = min(found, key=lambda each: each[0])
    return name, member, update
