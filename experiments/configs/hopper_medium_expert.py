"""Diffusion-QL on Hopper, medium-expert data.

    python -m experiments.run --config=hopper_medium_expert

Dataset: Minari's mujoco/hopper/medium-v0 and mujoco/hopper/expert-v0, one behind the
  other; where they are not to be had, jdql collects jdql/hopper/medium-v0 and
  jdql/hopper/expert-v0 and says so.
Expect: the paper's Table 1 has 111.1 +- 1.3 on D4RL's hopper-medium-expert-v2, by
  offline selection. Data and simulator here are others (Hopper-v5): not comparable.
Time: 2,000,000 updates; four seeds on two CPU cores take about 44 hours, the quick
  variant minutes.
"""

from __future__ import annotations

from experiments.configs.common import locomotion
from jdql.config import Config


def get_config() -> Config:
    """The authors' settings for this task."""
    return locomotion(
        "hopper",
        "medium",
        "expert",
        grad_norm=5.0,
        top_k=2,
        name="hopper_medium_expert",
    )
