"""Diffusion-QL on AntMaze umaze-diverse.

    python -m experiments.run --config=antmaze_umaze_diverse

Dataset: Minari's D4RL/antmaze/umaze-diverse-v1 (download of 605 MB); the simulator
  needs pip install 'jdql[robotics]'.
Expect: the paper's Table 1 has 66.2 on D4RL's antmaze-umaze-diverse-v0, by offline
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
        "umaze",
        "diverse",
        env="AntMaze_UMaze-v4",
        eta=2.0,
        grad_norm=3.0,
        top_k=2,
        max_q_backup=True,
    )
