"""One process of a collection: plays blocks of episodes with a numpy policy.

Started by `jdql.collect.collect` as `python -m jdql.collect.worker`; reads
block numbers from standard input, one a line, writes `block_<n>.npz` into the given
folder and answers each with a line of JSON.  It imports no jax: a process starts in a
second and holds little memory.

A block is what one call plays.  Of a bundled policy it is a fixed group of episodes,
played in lock-step by one batched policy call a step.  An episode's seeds come from its
own number and its row in the batch is always the same, so that its bits do not depend
on which process played it, or on how many processes there were.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 16  # episodes played in lock-step

Weights = list[tuple[np.ndarray, np.ndarray]]


def load_policy(path: str | Path) -> Weights:
    """Reads `w0 b0 w1 b1 w2 b2` as float32 pairs."""
    with np.load(path) as file:
        arrays = {name: file[name].astype(np.float32) for name in file.files}
    return [(arrays[f"w{i}"], arrays[f"b{i}"]) for i in range(len(arrays) // 2)]


def act(
    policy: Weights, observation: np.ndarray, noise: np.ndarray | None
) -> np.ndarray:
    """Actions [B, A] of a squashed Gaussian policy for observations [B, O].

    Args:
      policy: Layers `(w, b)`; the last gives means and log standard deviations.
      observation: Float32 [B, O].
      noise: Standard normal [B, A], or None for the greedy action.
    """
    x = observation
    for w, b in policy[:-1]:
        x = np.maximum(x @ w + b, 0.0)
    mean, log_std = np.split(x @ policy[-1][0] + policy[-1][1], 2, axis=-1)
    if noise is None:
        return np.tanh(mean)
    return np.tanh(mean + np.exp(np.clip(log_std, -10.0, 2.0)) * noise)


def play_block(
    envs: list[Any], policy: Weights, sampled: bool, seed: int, block: int
) -> list[dict[str, np.ndarray]]:
    """Plays the episodes `block * BLOCK ... + BLOCK - 1` to their ends.

    Returns:
      Per episode `observations` [T + 1, O], `actions` [T, A], `rewards` [T] (float32)
      and `terminated` (bool: a true end, not the time limit).
    """
    limit = envs[0].spec.max_episode_steps
    obs_dim = envs[0].observation_space.shape[0]
    act_dim = envs[0].action_space.shape[0]
    observations = np.zeros((BLOCK, limit + 1, obs_dim), np.float32)
    actions = np.zeros((BLOCK, limit, act_dim), np.float32)
    rewards = np.zeros((BLOCK, limit), np.float32)
    noises = np.zeros((BLOCK, limit, act_dim), np.float32)
    terminated = np.zeros(BLOCK, bool)
    length = np.zeros(BLOCK, int)
    for row, env in enumerate(envs):
        seeds = np.random.SeedSequence([seed, block * BLOCK + row])
        reset_seed = int(seeds.generate_state(1)[0])
        observations[row, 0] = env.reset(seed=reset_seed)[0]
        generator = np.random.default_rng(seeds.spawn(1)[0])
        noises[row] = generator.standard_normal((limit, act_dim), np.float32)
    live = list(range(BLOCK))
    for t in range(limit):
        # Rows that are over stay in the batch: another batch size is another order of
        # summation in the matrix product, hence other bits.
        actions[:, t] = act(
            policy, observations[:, t], noises[:, t] if sampled else None
        )
        for row in live:
            step = envs[row].step(actions[row, t])
            observations[row, t + 1], rewards[row, t], terminated[row] = step[:3]
            length[row] = t + 1
        live = [row for row in live if not terminated[row]]
        if not live:
            break
    return [
        {
            "observations": observations[row, : n + 1],
            "actions": actions[row, :n],
            "rewards": rewards[row, :n],
            "terminated": np.array(terminated[row]),
        }
        for row, n in enumerate(length)
    ]


def save_block(path: Path, episodes: list[dict[str, np.ndarray]]) -> None:
    """Writes the episodes of a block into one file, its name last."""
    partial = path.with_suffix(".partial.npz")
    arrays: dict[str, Any] = {
        f"{name}_{i}": value
        for i, episode in enumerate(episodes)
        for name, value in episode.items()
    }
    np.savez(partial, **arrays)
    os.replace(partial, path)


def load_block(path: Path) -> list[dict[str, np.ndarray]]:
    """Reads what `save_block` wrote."""
    with np.load(path) as file:
        names = ("observations", "actions", "rewards", "terminated")
        count = len(file.files) // len(names)
        return [{name: file[f"{name}_{i}"] for name in names} for i in range(count)]


Play = Callable[[int, int], list[dict[str, np.ndarray]]]  # (seed, block) -> episodes


def policy_player(args: argparse.Namespace) -> Play:
    """Blocks of a bundled policy's episodes."""
    import gymnasium

    envs = [gymnasium.make(args.env, disable_env_checker=True) for _ in range(BLOCK)]
    policy = load_policy(args.policy)
    return lambda seed, block: play_block(envs, policy, bool(args.sampled), seed, block)


def own_player(args: argparse.Namespace) -> Play:
    """Blocks of what a function makes that is named on the command line."""
    module, _, function = args.player.partition(":")
    return vars(importlib.import_module(module))[function](args.env)


def main(argv: list[str] | None = None) -> None:
    """Answers block numbers until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", required=True)
    parser.add_argument("--policy", help="file of a bundled policy")
    parser.add_argument("--sampled", type=int, default=1)
    parser.add_argument("--player", help="or package.module:function that plays")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    os.chdir(args.folder)  # MuJoCo writes its log into the working directory

    play = own_player(args) if args.player else policy_player(args)
    for line in sys.stdin:
        block = int(line)
        episodes = play(args.seed, block)
        save_block(args.folder / f"block_{block}.npz", episodes)
        steps = sum(len(episode["rewards"]) for episode in episodes)
        print(json.dumps({"block": block, "steps": steps}), flush=True)


if __name__ == "__main__":
    main()
