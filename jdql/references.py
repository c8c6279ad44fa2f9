"""Reference returns, and the normalised score that they define.

A score is `100 (return - low) / (high - low)`: 0 is the return of a random policy and
100 that of the reference policy.  D4RL measured its references in its own environments
(the v2 ones of Gym, for locomotion), so a score on this scale is called a D4RL score
only where both the dataset and the environment are D4RL's.
"""

from __future__ import annotations

import difflib
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Reference(NamedTuple):
    """The two returns that score 0 (`low`) and 100 (`high`), and who measured them."""

    name: str
    low: float
    high: float
    source: str


_D4RL_GYM = "D4RL's gym references (d4rl/infos.py), measured in the v2 environments"
_WAYPOINTS = (
    "jdql's own: random actions, and jdql's waypoint controller without noise, 2000 "
    "episodes of each (python -m jdql.collect.mazes)"
)

REFERENCES: dict[str, Reference] = {
    reference.name: reference
    for reference in (
        Reference("walker2d", 1.629008, 4592.3, _D4RL_GYM),
        Reference("hopper", -20.272305, 3234.3, _D4RL_GYM),
        Reference("halfcheetah", -280.178953, 12135.0, _D4RL_GYM),
        Reference(
            "antmaze",
            0.0,
            1.0,
            "D4RL's antmaze references (d4rl/infos.py): 1 for reaching the goal",
        ),
        Reference(
            "pen",
            96.262799,
            3076.8331017826877,
            "D4RL's Adroit references (d4rl/infos.py), measured in pen-v0",
        ),
        Reference(
            "kitchen",
            0.0,
            4.0,
            "D4RL's kitchen references (d4rl/infos.py): the number of tasks done, of 4",
        ),
        Reference(
            "safety_halfcheetah",
            -283.0,
            2507.0,
            "NeoRL-2's SafetyHalfCheetah references (polixir/NeoRL2, envs/info.py)",
        ),
        *(
            Reference(f"pointmaze_{maze}", low, high, _WAYPOINTS)
            for maze, low, high in (
                ("umaze", 42.43, 224.12),
                ("medium", 16.89, 416.92),
                ("large", 7.87, 546.05),
            )
        ),
        Reference(
            "pusht",
            0.0,
            1.0,
            "Diffusion Policy's: an episode's highest reward, min(1, coverage / 0.95)",
        ),
        Reference(
            "two_route",
            0.0,
            1.0,
            "jdql's own scale: 1 for reaching the goal; it is nobody else's",
        ),
        Reference(
            "bandit",
            0.0,
            5.0,
            "jdql's own scale: 0 is no reward, 5 the best mode's; it is nobody else's",
        ),
    )
}


def find(name: str) -> Reference:
    """Looks a reference up by name.

    Raises:
      ValueError: no such reference; the message names the nearest one.
    """
    if name in REFERENCES:
        return REFERENCES[name]
    near = difflib.get_close_matches(name.lower(), REFERENCES, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]!r}? " if near else ""
    known = ", ".join(REFERENCES)
    raise ValueError(f"no reference scores named {name!r}: {hint}known are {known}")


def normalized(
    returns: ArrayLike | float, reference: str | Reference
) -> NDArray[np.float64]:
    """Maps undiscounted returns to scores, without clipping.

    Args:
      returns: returns, any shape.
      reference: a name in `REFERENCES`, or a reference of one's own.

    Returns:
      `100 (return - low) / (high - low)`, of the same shape: 0 to 100 between the two
      references, and beyond them outside.

    Raises:
      ValueError: the name is unknown.
    """
    chosen = find(reference) if isinstance(reference, str) else reference
    span = chosen.high - chosen.low
    values = np.asarray(returns, np.float64)
    return np.asarray(100.0 * (values - chosen.low) / span)


def describe(reference: str | Reference) -> str:
    """The line that says which reference a score was counted with.

    Raises:
      ValueError: the name is unknown.
    """
    chosen = find(reference) if isinstance(reference, str) else reference
    return (
        f"score: 0 = return {chosen.low:g}, 100 = return {chosen.high:g} "
        f"({chosen.name}: {chosen.source})"
    )
