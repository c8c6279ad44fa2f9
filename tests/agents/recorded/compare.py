"""How near is near enough: the agreement that the recordings ask for in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def assert_close(actual: Any, expected: np.ndarray, tolerance: float, name: str):
    """Within a tolerance that is absolute below 1 and relative above."""
    error = np.abs(np.asarray(actual, np.float64) - expected)
    excess = error / (tolerance * np.maximum(1, np.abs(expected)))
    assert np.all(excess <= 1), f"{name}: {error.max():.3g} from {expected}"


def assert_same_parameters(
    pairs: Mapping[str, tuple[Any, Any, float]], updates: int
) -> None:
    """All but one entry in a thousand within 2e-6, each within two steps an update.

    Adam divides by the square root of second moments, tiny ones too.

    Args:
      pairs: (parameters, those recorded, learning rate) by name, counted together.
      updates: how many were done.
    """
    errors = {name: _errors(*pair[:2]) for name, pair in pairs.items()}
    shares = {name: f"{np.mean(e > 2e-6):.2%}" for name, e in errors.items()}
    assert np.mean(np.concatenate(list(errors.values())) > 2e-6) <= 1e-3, shares
    for name, error in errors.items():
        assert error.max() <= 2 * pairs[name][2] * updates, f"{name}: {error.max()}"


def _errors(actual: Any, expected: Any) -> np.ndarray:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return np.concatenate([np.abs(np.asarray(a) - e).ravel() for a, e in pairs])
