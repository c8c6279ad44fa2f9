"""Diffusion-QL on Franka kitchen, complete data.

    python -m experiments.run --config=kitchen_complete

Dataset: Minari's D4RL/kitchen/complete-v2; the simulator needs pip install
  'jdql[robotics]' and mujoco older than 3.11.
Expect: the paper's Table 1 has 84.0 on D4RL's kitchen-complete-v0, by offline
  selection. Minari replayed the data in another simulator: not comparable.
Time: 250,000 updates; four seeds on two CPU cores take about 6 hours, the quick variant
  minutes.
"""

from __future__ import annotations

from experiments.configs.common import kitchen
from jdql.config import Config


def get_config() -> Config:
    """The authors' settings for this task."""
    return kitchen(
        "complete",
        tasks=("microwave", "kettle", "light switch", "slide cabinet"),
        grad_norm=9.0,
        top_k=2,
        epochs=250,
    )
