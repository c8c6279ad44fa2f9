"""Diffusion-QL on AntMaze medium-diverse.

    python -m experiments.run --config=antmaze_medium_diverse

Dataset: Minari's D4RL/antmaze/medium-diverse-v1 (download of 605 MB); the simulator
  needs pip install 'jdql[robotics]'.
Expect: the paper's Table 1 has 78.6 on D4RL's antmaze-medium-diverse-v0, by offline
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
        "medium",
        "diverse",
        env="AntMaze_Medium_Diverse_GR-v4",
        eta=3.0,
        grad_norm=1.0,
        top_k=1,
        max_q_backup=True,
    )
