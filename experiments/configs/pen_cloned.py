"""Diffusion-QL on the Adroit pen, cloned data.

    python -m experiments.run --config=pen_cloned

Dataset: Minari's D4RL/pen/cloned-v2; the simulator needs pip install 'jdql[robotics]'.
Expect: the paper's Table 1 has 57.3 on D4RL's pen-cloned-v1, by offline selection.
  Minari replayed the data in another simulator: not comparable.
Time: 1,000,000 updates; four seeds on two CPU cores take about 22 hours, the quick
  variant minutes.
"""

from __future__ import annotations

from experiments.configs.common import pen
from jdql.config import Config


def get_config() -> Config:
    """The authors' settings for this task."""
    return pen("cloned", eta=0.1, grad_norm=8.0, top_k=2)
