"""Diffusion-QL on Walker2d, medium-expert data.

    python -m experiments.run --config=walker2d_medium_expert

Dataset: Minari's mujoco/walker2d/medium-v0 and mujoco/walker2d/expert-v0, one behind
  the other; where they are not to be had, jdql collects jdql/walker2d/medium-v0 and
  jdql/walker2d/expert-v0 and says so.
Expect: the paper's Table 1 has 110.1 +- 0.3 on D4RL's walker2d-medium-expert-v2, by
  offline selection. Data and simulator here are others (Walker2d-v5): not comparable.
Time: 2,000,000 updates; four seeds on two CPU cores take about 44 hours, the quick
  variant minutes.
"""

from __future__ import annotations

from experiments.configs.common import locomotion
from jdql.config import Config


def get_config() -> Config:
    """The authors' settings for this task."""
    return locomotion(
        "walker2d",
        "medium",
        "expert",
        grad_norm=5.0,
        top_k=1,
        name="walker2d_medium_expert",
    )
