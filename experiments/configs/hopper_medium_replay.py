"""Diffusion-QL on Hopper, medium-replay data.

    python -m experiments.run --config=hopper_medium_replay

Dataset: mujoco/hopper/medium-replay-v0, or the recorded training of jdql's own medium
  policy, jdql/hopper/medium-replay-v0.
Expect: the paper's Table 1 has 101.3 +- 0.6 on D4RL's hopper-medium-replay-v2, by
  offline selection. Data and simulator here are others (Hopper-v5): not comparable.
Time: 2,000,000 updates; four seeds on two CPU cores take about 44 hours, the quick
  variant minutes.
"""

from __future__ import annotations

from experiments.configs.common import locomotion
from jdql.config import Config


def get_config() -> Config:
    """The authors' settings for this task."""
    return locomotion("hopper", "medium-replay", grad_norm=4.0, top_k=2)
