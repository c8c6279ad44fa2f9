"""Diffusion-QL on the Adroit pen, human data.

    python -m experiments.run --config=pen_human

Dataset: Minari's D4RL/pen/human-v2; the simulator needs pip install 'jdql[robotics]'.
Expect: the paper's Table 1 has 72.8 on D4RL's pen-human-v1, by offline selection.
  Minari replayed the data in another simulator: not comparable.
Time: 1,000,000 updates; four seeds on two CPU cores take about 22 hours, the quick
  variant minutes.
"""

from __future__ import annotations

from experiments.configs.common import pen
from jdql.config import Config


def get_config() -> Config:
    """The authors' settings for this task."""
    return pen("human", eta=0.15, grad_norm=7.0, top_k=2)
