"""Observations and actions on the scale that agents see, and back.

A `Scaling` has two sides, one for observations and one for actions.  Each side is a map
of the columns of arrays [*B, D], fitted on the training data:

| name | columns of the training data become | beyond the data |
|---|---|---|
| identity | what they are, to the bit | likewise |
| gaussian | mean 0, standard deviation 1 | goes on in a line |
| limits | minimum -1, maximum 1 | goes on in a line |
| cdf | uniform in (-1, 1], by their empirical distribution | stays at the ends |

Data are scaled once, on the host, when they are read.  Acting scales observations
(`scaling.observation.forward`) and undoes the scale of the agent's actions
(`scaling.action.inverse`).  A scaling holds arrays only and is saved with what an agent
has learned; its shapes may depend on the data: `describe` and `blank` carry them from
the run that saves to the one that restores.

A column that does not vary in the training data has no scale: it is shifted to 0 and
keeps its unit.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdql.config import DataConfig
from jdql.types import Array, Float

CONSTANT = 1e-6  # a column that varies less, relative to its size, is a constant
KNOTS = 4096  # of a distribution function, at most


class Affine(NamedTuple):
    """The map `(x - shift) * scale`, column by column; a scale of 0 hides a column."""

    shift: Float[Array, " D"]
    scale: Float[Array, " D"]

    def forward(self, x: Any) -> Any:
        """Scaled values [*B, D], of NumPy or of JAX as they came."""
        return (x - self.shift) * self.scale

    def inverse(self, y: Any) -> Any:
        """The values [*B, D] that `forward` maps to `y`; `shift` in hidden columns."""
        hidden = self.scale == 0
        return y * ~hidden / (self.scale + hidden) + self.shift


class Table(NamedTuple):
    """A piecewise linear map through the points `(knot, position)` of each column.

    Both rise along K; columns with fewer points repeat their last.
    """

    knot: Float[Array, "K D"]
    position: Float[Array, "K D"]

    def forward(self, x: Any) -> Any:
        """Positions [*B, D], of NumPy or of JAX; beyond the knots, that of the last."""
        return _interpolate(x, self.knot, self.position)

    def inverse(self, y: Any) -> Any:
        """The values [*B, D] at these positions."""
        return _interpolate(y, self.position, self.knot)


Side = Affine | Table


class Scaling(NamedTuple):
    """The maps of observations [*B, O] and of actions [*B, A]."""

    observation: Side
    action: Side


def _interpolate(x: Any, inputs: Any, outputs: Any) -> Any:
    if isinstance(x, jax.Array) or isinstance(inputs, jax.Array):
        of_columns = jax.vmap(jnp.interp, in_axes=-1, out_axes=-1)
        return of_columns(jnp.asarray(x), inputs, outputs)
    x = np.asarray(x)
    columns = [
        np.interp(x[..., i], inputs[:, i], outputs[:, i]) for i in range(x.shape[-1])
    ]
    return np.stack(columns, axis=-1).astype(x.dtype)


def identity(values: Any) -> Affine:
    """The map that changes nothing: `(x - 0) * 1`, for values [N, D]."""
    size = np.shape(values)[1]
    return _affine(np.zeros(size), np.ones(size))


def gaussian(
    values: Any,
    *,
    ddof: int = 0,
    epsilon: float = 0.0,
    centred: bool = True,
    tolerance: float = 0.0,
) -> Affine:
    """`(x - mean) / (std + epsilon)`.

    Args:
      values: Training data, [N, D].
      ddof: The divisor of the variance is N - ddof.
      epsilon: Added to every standard deviation (SynthER: 1e-5, with ddof 1).
      centred: False keeps 0 where it is: `x / (std + epsilon)`.
      tolerance: A column of no larger standard deviation is a constant.
    """
    values = np.asarray(values, np.float64)
    mean, std = values.mean(axis=0), values.std(axis=0, ddof=ddof)
    constant = _is_constant(std, mean, tolerance)
    # Deviation: Diffuser divides a constant column by 0, SynthER by 1e-5.
    scale = 1.0 / np.where(constant, 1.0, std + epsilon)
    return _affine(mean * centred, scale)


def limits(values: Any, *, centred: bool = True, tolerance: float = 0.0) -> Affine:
    """`2 (x - min) / (max - min) - 1`.

    Args:
      values: Training data, [N, D].
      centred: False keeps 0 where it is: `x / max |x|`.
      tolerance: A column of no larger range is a constant (Diffusion Policy: 1e-4).
    """
    values = np.asarray(values, np.float64)
    low, high = values.min(axis=0), values.max(axis=0)
    half = (high - low) / 2 if centred else np.maximum(np.abs(low), np.abs(high))
    spread = 2 * half if centred else half
    # Deviation: Diffuser divides a constant column by 0, or widens every column by 1 on
    # either side.  Its inverse clips; here agents clip, to the bounds of their spec.
    constant = _is_constant(spread, low, tolerance)
    shift = np.where(constant, low, (low + high) / 2) * centred
    return _affine(shift, 1.0 / np.where(constant, 1.0, half))


def cdf(values: Any, *, knots: int = KNOTS) -> Table:
    """`2 F(x) - 1` with F the empirical distribution function of the training data.

    F(x) is the share of the data that is at most x, and linear in between: the smallest
    of N different values is mapped to `2 / N - 1` and the largest to 1, and values
    beyond them likewise.

    Args:
      values: Training data, [N, D].
      knots: Largest number of knots of a column, at least 2.
    """
    columns = [_distribution(column, knots // 2) for column in np.asarray(values).T]
    longest = max(len(knot) for knot, _ in columns)
    padded = [
        np.pad(points, ((0, 0), (0, longest - points.shape[1])), mode="edge")
        for points in map(np.stack, columns)
    ]
    made: Any = np.stack(padded, axis=-1).astype(np.float32)
    return Table(*made)


def _distribution(column: Any, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Knots and positions of one column, [K] each."""
    column = column.astype(np.float32)
    knot, counts = np.unique(column, return_counts=True)
    if _is_constant(knot[-1] - knot[0], knot[0], 0.0):
        # Deviation: Diffuser fails here, Decision Diffuser passes the constant on.
        return knot[0] + np.array([-1.0, 0.0, 1.0]), np.array([-1.0, 0.0, 1.0])
    share = np.cumsum(counts) / len(column)
    if len(knot) > 2 * bins:
        # Deviation: the authors keep every value.  Of the values in each of the bins of
        # equal probability the first and the last are enough: F is off by 1 / bins at
        # most, and values that are frequent keep their jumps.
        bin_number = np.ceil(share * bins)
        first = np.diff(bin_number, prepend=0.0) > 0
        last = np.diff(bin_number, append=bins + 1.0) > 0
        knot, share = knot[first | last], share[first | last]
    return knot, 2 * share - 1


def _is_constant(spread: Any, level: Any, tolerance: float) -> Any:
    relative = CONSTANT * np.maximum(1.0, np.abs(level))
    return ~(spread > np.maximum(tolerance, relative))  # so that NaN is constant


def _affine(shift: np.ndarray, scale: np.ndarray) -> Affine:
    wide: Any = (shift.astype(np.float32), scale.astype(np.float32))
    return Affine(*wide)


def leave(side: Affine, columns: Sequence[int]) -> Affine:
    """The map that leaves some columns as they are (SynthER's terminals)."""
    shift, scale = np.array(side.shift), np.array(side.scale)
    shift[list(columns)], scale[list(columns)] = 0.0, 1.0
    return _affine(shift, scale)


def ignore(side: Side, columns: Sequence[int]) -> Side:
    """The map that makes some columns 0, whatever is in them.

    Its inverse knows nothing of them: it gives a number from the middle of the training
    data, or 0 where the map was the identity.

    Raises:
      ValueError: a column does not exist.
    """
    size = side[0].shape[-1]
    for column in columns:
        if not 0 <= column < size:
            raise ValueError(
                f"data.ignore names column {column}, but observations have columns 0 "
                f"to {size - 1}"
            )
    first, second = np.array(side[0]), np.array(side[1])
    second[..., list(columns)] = 0.0  # the scale, or the positions
    if isinstance(side, Affine):
        return _affine(first, second)
    first[:, list(columns)] = first[len(first) // 2, list(columns)]
    wide: Any = (first, second)
    return Table(*wide)


Fit = Callable[[Any], Side]
FITS: dict[str, Fit] = {
    "identity": identity,
    "gaussian": gaussian,
    "limits": limits,
    "cdf": cdf,
}
UNIT = (limits, cdf)  # what these fit maps the training data into [-1, 1]


def by_name(name: str, setting: str = "scaling") -> Fit:
    """The function of training data that fits the map of that name.

    Args:
      name: A key of `FITS`.
      setting: Where it was set, for the error.

    Raises:
      ValueError: there is none.
    """
    if name not in FITS:
        nearest = difflib.get_close_matches(name, FITS, 1, cutoff=0.0)[0]
        raise ValueError(
            f"{setting} must be one of {', '.join(FITS)}, it is '{name}'; did you mean "
            f"'{nearest}'?"
        )
    return FITS[name]


def fit(observation: Any, action: Any, config: DataConfig) -> Scaling:
    """The scaling of training data, float32.

    Args:
      observation: Of all transitions, [N, O].
      action: Likewise, [N, A].
      config: `scale_observations`, `scale_actions` and `ignore` are used.

    Raises:
      ValueError: there is no map of that name, or no column that is to be ignored.
    """
    seen = by_name(config.scale_observations, "data.scale_observations")(observation)
    acted = by_name(config.scale_actions, "data.scale_actions")(action)
    return Scaling(ignore(seen, config.ignore), acted)


def is_identity(side: Side) -> bool:
    """Whether a map on the host changes nothing."""
    return isinstance(side, Affine) and bool(
        (side.shift == 0).all() and (side.scale == 1).all()
    )


def describe(scaling: Scaling) -> dict[str, Any]:
    """What `blank` needs, in the types of JSON: kind and shape of each side."""
    return {
        name: {"map": type(side).__name__.lower(), "shape": list(side[0].shape)}
        for name, side in scaling._asdict().items()
    }


def blank(description: dict[str, Any]) -> Scaling:
    """Shapes and types of the scaling that `describe` saw, to restore one into."""
    kinds: dict[str, Any] = {"affine": Affine, "table": Table}

    def side(stored: dict[str, Any]) -> Side:
        leaf = jax.ShapeDtypeStruct(tuple(stored["shape"]), jnp.float32)
        return kinds[stored["map"]](leaf, leaf)

    return Scaling(side(description["observation"]), side(description["action"]))
