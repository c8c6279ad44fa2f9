"""Diffusion-QL on HalfCheetah, medium-replay data.

    python -m experiments.run --config=halfcheetah_medium_replay

Dataset: mujoco/halfcheetah/medium-replay-v0, or the recorded training of jdql's own
  medium policy, jdql/halfcheetah/medium-replay-v0.
Expect: the paper's Table 1 has 47.8 +- 0.3 on D4RL's halfcheetah-medium-replay-v2, by
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
    return locomotion("halfcheetah", "medium-replay", grad_norm=2.0, top_k=0)
