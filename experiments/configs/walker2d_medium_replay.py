"""Diffusion-QL on Walker2d, medium-replay data.

    python -m experiments.run --config=walker2d_medium_replay

Dataset: mujoco/walker2d/medium-replay-v0, or the recorded training of jdql's own medium
  policy, jdql/walker2d/medium-replay-v0.
Expect: the paper's Table 1 has 95.5 +- 1.5 on D4RL's walker2d-medium-replay-v2, by
  offline selection. Data and simulator here are others (Walker2d-v5): not comparable.
Time: 2,000,000 updates; four seeds on two CPU cores take about 44 hours, the quick
  variant minutes.
"""

from __future__ import annotations

from experiments.configs.common import locomotion
from jdql.config import Config


def get_config() -> Config:
    """The authors' settings for this task."""
    return locomotion("walker2d", "medium-replay", grad_norm=4.0, top_k=1)
