"""Diffusion-QL on Franka kitchen, mixed data.

    python -m experiments.run --config=kitchen_mixed

Dataset: Minari's D4RL/kitchen/mixed-v2; the simulator needs pip install
  'jdql[robotics]' and mujoco older than 3.11.
Expect: the paper's Table 1 has 62.6 on D4RL's kitchen-mixed-v0, by offline selection.
  Minari replayed the data in another simulator: not comparable.
Time: 1,000,000 updates; four seeds on two CPU cores take about 22 hours, the quick
  variant minutes.
"""

from __future__ import annotations

from experiments.configs.common import kitchen
from jdql.config import Config


def get_config() -> Config:
    """The authors' settings for this task."""
    return kitchen(
        "mixed",
        tasks=("microwave", "kettle", "bottom burner", "light switch"),
        grad_norm=10.0,
        top_k=0,
    )
