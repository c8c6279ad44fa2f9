"""Diffusion-QL on Hopper, medium data.

    python -m experiments.run --config=hopper_medium

Dataset: Minari's mujoco/hopper/medium-v0; where it is not to be had, jdql collects its
  own jdql/hopper/medium-v0 and says so.
Expect: the paper's Table 1 has 90.5 +- 4.6 on D4RL's hopper-medium-v2, by offline
  selection. Data and simulator here are others (Hopper-v5): not comparable.
Time: 2,000,000 updates; four seeds on two CPU cores take about 44 hours, the quick
  variant minutes.
"""

from __future__ import annotations

from experiments.configs.common import locomotion
from jdql.config import Config


def get_config() -> Config:
    """The authors' settings for this task."""
    return locomotion("hopper", "medium", grad_norm=9.0, top_k=2)
