"""The bandit experiment: trains every panel, prints the shares, draws three figures.

bandit_cloning      the data, three baselines and the diffusion policy, cloning
bandit_improving    the same for their Q-learning counterparts
bandit_steps        the diffusion policy, both ways, with shorter and longer chains
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.studies.bandit import panels, plots
from experiments.studies.bandit.panels import Budget, Panel
from jdql.envs import bandit
from jdql.report.plots import COLOURS, save
from jdql.runtime.evaluate import versions

CLONED, IMPROVED = 1_000, 100  # actions shown, as the authors do
SHARE, TOLERANCE = 0.25, 0.05  # of each mode in the data; what passes for it
BEST_SHARE = 0.90  # of the best mode, which a good policy exceeds

Log = Callable[[str], None]


class Result(NamedTuple):
    """What a panel drew: `actions` [S, N, 2] and `shares` [S, 4] of the modes."""

    panel: Panel
    actions: NDArray[np.float32]
    shares: NDArray[np.float64]


def run(
    out: Path,
    folder: Path,
    seeds: Sequence[int],
    budget: Budget,
    *,
    shifted: bool,
    log: Log,
) -> list[Path] | None:
    """Trains what is not trained yet, prints the tables and writes the figures.

    Args:
      out: folder of the figures.
      folder: where the run folders are.
      seeds: of every method; the first one is drawn, the tables hold all.
      budget: updates and learning rate.
      shifted: whether BCQ's actions are drawn with their shift.
      log: takes lines for the user.

    Returns:
      The files that were written; None where the user stopped the training.
    """
    # Policies with a long chain take the longest and come last, so that a user sees
    # all other results before them.
    methods = [
        *panels.cloning(budget),
        *panels.improving(budget, shifted),
        *(panels.diffusion_cloning(T, budget) for T in panels.STEPS),
        *(panels.diffusion_improving(T, budget) for T in panels.STEPS),
    ]
    results: list[Result] = []
    for panel in methods:
        actions = panels.actions(panel, seeds, folder, log)
        if actions is None:
            return None
        shares = np.array([bandit.mode_shares(a) for a in actions])
        results.append(Result(panel, actions, shares))
    long = len(panels.STEPS)
    improved_steps, results = results[-long:], results[:-long]
    cloned_steps, results = results[-long:], results[:-long]
    count = len(panels.cloning(budget))
    cloned = [*results[:count], cloned_steps[-1]]
    improved = [*results[count:], improved_steps[-1]]
    for title, results, claim in (
        ("Cloning", cloned, clones),
        ("Q-learning", improved, improves),
        ("Cloning, by the length of the chain", cloned_steps, clones),
        ("Q-learning, by the length of the chain", improved_steps, improves),
    ):
        log("\n" + table(title, results, claim))
    record = {
        "seeds": list(seeds),
        "budget": budget._asdict(),
        "versions": versions(),
        "shares": {
            r.panel.title: r.shares.tolist()
            for r in (*cloned, *improved, *cloned_steps, *improved_steps)
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "bandit.json"]
    written[0].write_text(json.dumps(record, indent=2) + "\n")
    for name, figure in figures(cloned, improved, cloned_steps, improved_steps):
        written += save(figure, out / name)
    return written


def clones(shares: NDArray[np.float64]) -> bool:
    """Whether shares [4] are those of the data, 25 +- 5 % each."""
    return bool((np.abs(shares - SHARE) <= TOLERANCE).all())


def improves(shares: NDArray[np.float64]) -> bool:
    """Whether more than 90 % of the actions are on the mode of the highest reward."""
    best = int(np.argmax([mode.reward for mode in bandit.MODES]))
    return bool(shares[best] > BEST_SHARE)


_CLAIMS: dict[Callable, str] = {
    clones: "25 +- 5 % on every mode",
    improves: "more than 90 % on the mode of reward 5",
}


def table(
    title: str,
    results: Sequence[Result],
    claim: Callable[[NDArray[np.float64]], bool],
) -> str:
    """Shares in percent, the mean over seeds and its range, one line a method.

    Args:
      title: above the table.
      results: the methods.
      claim: what the paper says of the diffusion policy, of the mean over seeds [4].
    """
    count, drawn = results[0].actions.shape[:2]
    lines = [
        f"{title}: % of {drawn:,} actions within 3 standard deviations of each mode, "
        f"mean over {count} seed(s) (lowest to highest)",
        f"{'':22}"
        + "".join(f"{f'{m.name}, r = {m.reward:g}':>22}" for m in bandit.MODES)
        + f"{'elsewhere':>12}",
    ]
    for name, _, shares in (
        (r.panel.title, r.actions, 100 * r.shares) for r in results
    ):
        cells = [f"{s.mean():.1f} ({s.min():.1f} to {s.max():.1f})" for s in shares.T]
        rest = 100 - shares.sum(axis=1).mean()
        lines.append(
            f"{name:22}" + "".join(f"{cell:>22}" for cell in cells) + f"{rest:12.1f}"
        )
    passed = [r.panel.title for r in results if claim(r.shares.mean(axis=0))]
    lines.append(f"{_CLAIMS[claim]}: {'; '.join(passed) or 'none'}")
    return "\n".join(lines)


def figures(
    cloned: Sequence[Result],
    improved: Sequence[Result],
    cloned_steps: Sequence[Result],
    improved_steps: Sequence[Result],
) -> list[tuple[str, Any]]:
    """The three figures by name, in the order of the module's docstring."""
    data = bandit.dataset()["actions"]
    data = np.random.default_rng(0).permutation(data)[:CLONED]
    truth = plots.Scatter(
        "Data", f"{CLONED:,} of {bandit.SIZE:,} actions", data, COLOURS[3]
    )
    rewards = truth._replace(
        title="Data and reward", colours=plots.by_mode(data), labelled=True
    )
    of_cloning = [_cloned(r) for r in cloned]
    of_improving = [_improved(r) for r in improved]
    circles = "Dotted circles: three standard deviations around each mode."
    return [
        (
            "bandit_cloning",
            plots.draw(
                [[truth, *of_cloning]],
                f"Behaviour cloning, {CLONED:,} actions of one seed. {circles}",
            ),
        ),
        (
            "bandit_improving",
            plots.draw(
                [[rewards, *of_improving]],
                f"Q-learning, {IMPROVED} actions of one seed. {circles}",
            ),
        ),
        (
            "bandit_steps",
            plots.draw(
                [
                    [_cloned(r) for r in cloned_steps],
                    [_improved(r) for r in improved_steps],
                ],
                f"T diffusion steps. Above: cloning, {CLONED:,} actions; below: "
                f"Q-learning, {IMPROVED}; one seed. {circles}",
            ),
        ),
    ]


def _cloned(result: Result) -> plots.Scatter:
    shares = result.shares[0]
    low, high = (f"{100 * share:.0f}" for share in (shares.min(), shares.max()))
    span = low if low == high else f"{low} to {high}"
    subtitle = f"{span} % on each mode"
    return plots.Scatter(result.panel.title, subtitle, result.actions[0, :CLONED])


def _improved(result: Result) -> plots.Scatter:
    best = max(range(len(bandit.MODES)), key=lambda i: bandit.MODES[i].reward)
    subtitle = f"{100 * result.shares[0][best]:.0f} % on the best mode"
    actions = result.actions[0, :IMPROVED]
    return plots.Scatter(result.panel.title, subtitle, actions, plots.INK)
