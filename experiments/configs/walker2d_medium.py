"""Diffusion-QL on Walker2d, medium data.

    python -m experiments.run --config=walker2d_medium

Dataset: Minari's mujoco/walker2d/medium-v0; where it is not to be had, jdql collects
  its own jdql/walker2d/medium-v0 and says so.
Expect: the paper's Table 1 has 87.0 +- 0.9 on D4RL's walker2d-medium-v2, by offline
  selection. Data and simulator here are others (Walker2d-v5): not comparable.
Time: 2,000,000 updates; four seeds on two CPU cores take about 44 hours, the quick
  variant minutes.
"""

from __future__ import annotations

from experiments.configs.common import locomotion
from jdql.config import Config


def get_config() -> Config:
    """The authors' settings for this task."""
    return locomotion("walker2d", "medium", grad_norm=1.0, top_k=1)
