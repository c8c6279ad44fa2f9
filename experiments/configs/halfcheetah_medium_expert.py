"""Diffusion-QL on HalfCheetah, medium-expert data.

    python -m experiments.run --config=halfcheetah_medium_expert

Dataset: Minari's mujoco/halfcheetah/medium-v0 and mujoco/halfcheetah/expert-v0, one
  behind the other; jdql bundles no expert for this robot, so the second must come from
  Minari.
Expect: the paper's Table 1 has 96.8 +- 0.3 on D4RL's halfcheetah-medium-expert-v2, by
  offline selection. Data and simulator here are others (HalfCheetah-v5): not
  comparable.
Time: 2,000,000 updates; four seeds on two CPU cores take about 44 hours, the quick
  variant minutes.
"""

from __future__ import annotations

from experiments.configs.common import locomotion
from jdql.config import Config


def get_config() -> Config:
    """The authors' settings for this task."""
    return locomotion(
        "halfcheetah",
        "medium",
        "expert",
        grad_norm=7.0,
        top_k=0,
        name="halfcheetah_medium_expert",
    )
