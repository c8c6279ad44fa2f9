"""Diffusion-QL on HalfCheetah, medium data.

    python -m experiments.run --config=halfcheetah_medium

Dataset: Minari's mujoco/halfcheetah/medium-v0; where it is not to be had, jdql collects
  its own jdql/halfcheetah/medium-v0 and says so.
Expect: the paper's Table 1 has 51.1 +- 0.5 on D4RL's halfcheetah-medium-v2, by offline
  selection. Data and simulator here are others (HalfCheetah-v5): not comparable.
Time: 2,000,000 updates; four seeds on two CPU cores take about 44 hours, the quick
  variant minutes.
"""

from __future__ import annotations

from experiments.configs.common import locomotion
from jdql.config import Config


def get_config() -> Config:
    """The authors' settings for this task."""
    return locomotion("halfcheetah", "medium", grad_norm=9.0, top_k=1)
