"""Plans that end as soon as they can: of the first horizon that is believed.

A planner that is held to a goal at its last row arrives there at that row and no
sooner.  Where the goal is near, a shorter horizon brings the point there earlier; where
it is too far for so few steps, plans have to jump: positions and speeds disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jdql.checks import at_least
from jdql.types import Array, Float, PRNGKeyArray


def check(shorter: tuple[int, ...], longest: int, several: int, allowed: bool) -> None:
    """Refuses horizons that cannot be chosen from.

    Args:
      shorter: than the longest, rising; of 2 steps or more.
      longest: the horizon of plans that are taken if no shorter one is believed.
      several: plans of each horizon.
      allowed: whether plans are held to a goal, and each is made from noise.

    Raises:
      ValueError: they are not such horizons, or plans not such plans.
    """
    at_least("candidates", several)
    if not shorter and several == 1:
        return
    rising = list(shorter) == sorted({*shorter})
    if not (rising and all(2 <= steps < longest for steps in shorter) and allowed):
        raise ValueError(
            f"{shorter=} must be rising horizons of 2 to {longest - 1}, and like "
            f"candidates={several} of plans to a goal that have no warm_start"
        )


def first_believed(
    sample: Callable[[PRNGKeyArray, int], Float[Array, "N h D"]],
    jump: Callable[[Float[Array, "h D"]], Float[Array, ""]],
    most: float,
    horizons: Sequence[int],
    key: PRNGKeyArray,
) -> Float[Array, "H D"]:
    """The smoothest of some plans of the first horizon of which none jumps.

    If plans of every horizon jump, it is the smoothest of the longest ones.  Shorter
    plans stay at their last row.

    Args:
      sample: `(key, horizon) -> plans [N, horizon, D]`.
      jump: the largest jump of a plan.
      most: what is not yet a jump.
      horizons: rising; the last one is H.
      key: for all of them.
    """
    keys = jax.random.split(key, len(horizons))
    smoothest, believed = [], []
    for one, horizon in zip(keys, horizons, strict=True):
        plans = sample(one, horizon)
        jumps = jax.vmap(jump)(plans)
        left = horizons[-1] - horizon
        smoothest.append(
            jnp.pad(plans[jnp.argmin(jumps)], [(0, left), (0, 0)], mode="edge")
        )
        believed.append(jnp.max(jumps) <= most)
    believed[-1] = jnp.ones((), bool)
    return jnp.stack(smoothest)[jnp.argmax(jnp.stack(believed))]


def largest_jump(
    place: Float[Array, "H d"], speed: Float[Array, "H d"], time_step: Array | float
) -> Float[Array, ""]:
    """max_t |x_{t+1} - x_t - dt (v_t + v_{t+1}) / 2|, 0 where speeds are kept."""
    by_speed = time_step * (speed[1:] + speed[:-1]) / 2
    return jnp.max(jnp.linalg.norm(place[1:] - place[:-1] - by_speed, axis=1))
