"""Means of metrics over updates, equal to the bit however updates were grouped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Means:
    """Sums up (S, updates) arrays by metric name, and gives their means (S,).

    Updates are added one after another in float64, and what is not yet taken goes into
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
