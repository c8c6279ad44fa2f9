"""Diffusion-QL on AntMaze large-diverse.

    python -m experiments.run --config=antmaze_large_diverse

Dataset: Minari's D4RL/antmaze/large-diverse-v1 (download of 605 MB); the simulator
  needs pip install 'jdql[robotics]'.
Expect: the paper's Table 1 has 56.6 on D4RL's antmaze-large-diverse-v0, by offline
  selection. Minari recorded other data in another simulator: not comparable.
Time: 1,000,000 updates; four seeds on two CPU cores take about 22 hours without the
  ten-fold backup, which costs two to three times that, the quick variant minutes.
"""

from __future__ import annotations

from experiments.configs.common import antmaze
from jdql.config import Config


def get_config() -> Config:
    """The authors' settings for this task."""
    return antmaze(
        "large",
        "diverse",
        env="AntMaze_Large_Diverse_GR-v4",
        eta=3.5,
        grad_norm=7.0,
        top_k=1,
        max_q_backup=True,
    )
