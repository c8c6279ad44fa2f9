"""jdql's own datasets: behaviour policies played in Gymnasium, as Minari files.

The policies are bundled networks, or controllers (`jdql.collect.mazes`).  The episodes
of a collection are numbered; number and seed fix every bit of an episode (see
`jdql.collect.worker`), and episodes are stored in order of their number.  The dataset
is therefore the same for any number of processes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from jdql import references
from jdql.collect import mazes
from jdql.collect.episodes import Episode, cut, read_replay, store
from jdql.collect.worker import load_block
from jdql.data import minari
from jdql.data.sources import DEFAULT_STEPS, local_id

ASSETS = Path(__file__).resolve().parent.parent / "assets"


class Behaviour(NamedTuple):
    """How a dataset is made: the environment, the policy's file, sampled or greedy.

    `player` names a function `package.module:function` that plays in the place of a
    policy's file; it takes the name of the environment and returns a
    `(seed, block) -> episodes`.
    """

    env: str
    policy: str
    sampled: bool
    player: str = ""


# D4RL collected with sampled actions.  The walker's best policy falls when sampled.
BEHAVIOURS = {
    "hopper/medium": Behaviour("Hopper-v5", "hopper_medium", True),
    "hopper/expert": Behaviour("Hopper-v5", "hopper_expert", True),
    "halfcheetah/medium": Behaviour("HalfCheetah-v5", "halfcheetah_medium", True),
    "walker2d/medium": Behaviour("Walker2d-v5", "walker2d_medium", True),
    "walker2d/expert": Behaviour("Walker2d-v5", "walker2d_expert", False),
}
_WAYPOINTS = "the noisy waypoint controller", True, "jdql.collect.mazes:player"
CONTROLLERS = {
    f"pointmaze/{maze}": Behaviour(f"jdql/PointMaze-{maze}-v0", *_WAYPOINTS)
    for maze in ("umaze", "medium", "large")
}
# Recorded training: no policy, a file.
REPLAYS = {
    "hopper/medium-replay": "Hopper-v5",
    "halfcheetah/medium-replay": "HalfCheetah-v5",
    "walker2d/medium-replay": "Walker2d-v5",
}


def collect(
    dataset_id: str,
    steps: int = DEFAULT_STEPS,
    seed: int = 0,
    log: Callable[[str], None] = print,
    processes: int | None = None,
) -> str:
    """Makes jdql's own dataset and stores it among the local Minari datasets.

    Args:
      dataset_id: `jdql/<environment>/<level>-v0`, or the Minari id that it stands for.
      steps: Number of transitions; the last episode is cut to reach it exactly.
        Recorded training (medium-replay) is stored whole.
      seed: Of the environments and the policy's noise.
      log: Receives lines for the user.
      processes: Worker processes; None is one for every CPU.  Changes no bit.

    Returns:
      The id of the dataset, which names steps and seed where they are not the defaults.
      Where it exists already, nothing is collected.

    Raises:
      ValueError: no policy is bundled for it, steps is not positive, seed is negative,
        or its simulator is not installed.
      FileNotFoundError: a medium-replay dataset, and its recorded training is absent.
    """
    if steps < 1:
        raise ValueError(f"collect_steps must be at least 1, it is {steps}")
    if seed < 0:
        raise ValueError(f"the seed of a collection must not be negative, it is {seed}")
    target = local_id(dataset_id, steps, seed)
    level = local_id(dataset_id).removeprefix("jdql/").rpartition("-v")[0]
    if level not in BEHAVIOURS | CONTROLLERS | REPLAYS:
        known = ", ".join([*BEHAVIOURS, *CONTROLLERS, *REPLAYS])
        raise ValueError(
            f"jdql cannot collect '{dataset_id}': no behaviour policy is bundled for "
            f"'{level}' (there are {known})"
        )
    if minari.exists(target):
        log(f"{target} is already in {minari.root()}")
        return target
    start, algorithm = time.monotonic(), "SAC"
    if level in REPLAYS:
        env = REPLAYS[level]
        path = replay_file(level)
        how = f"The recorded training of a SAC policy, {path.name}."
        log(f"storing the recorded training {path.name} as {target}")
        episodes = read_replay(path)
    else:
        behaviour = (BEHAVIOURS | CONTROLLERS)[level]
        env = behaviour.env
        actions = "sampled" if behaviour.sampled else "greedy"
        policy = f"the bundled policy {behaviour.policy} ({actions} actions, "
        how = f"Policy {behaviour.policy} (SAC), {actions} actions, seed {seed}."
        if behaviour.player:
            mazes.require(env)
            policy, algorithm = f"{behaviour.policy} (", "waypoint controller"
            how = f"By {behaviour.policy}, seed {seed}."
        log(
            f"collecting {steps:,} transitions of {env} as {target} with {policy}"
            f"seed {seed})"
        )
        episodes = cut(play(behaviour, steps, seed, processes), steps)
    store(target, episodes, env, _reference(level), how, algorithm)
    log(f"stored {target} in {minari.root()} ({time.monotonic() - start:.0f} s)")
    return target


def _reference(level: str) -> references.Reference:
    """The returns that score 0 and 100 in the environment of a dataset."""
    mine = level.replace("/", "_")
    return references.find(
        mine if mine in references.REFERENCES else level.partition("/")[0]
    )


def play(
    behaviour: Behaviour, steps: int, seed: int, processes: int | None = None
) -> list[Episode]:
    """Whole episodes 0, 1, 2, ... that hold at least `steps` transitions together."""
    processes = processes or _cpus()
    with tempfile.TemporaryDirectory(prefix="jdql-", ignore_cleanup_errors=True) as tmp:
        folder = Path(tmp)
        with _workers(behaviour, seed, folder, processes) as workers:
            count = _play_blocks(workers, steps)
        blocks = [load_block(folder / f"block_{block}.npz") for block in range(count)]
    return [episode for block in blocks for episode in block]


def _cpus() -> int:
    """CPUs that this process may use; macOS cannot say and counts all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _play_blocks(workers: list[subprocess.Popen[str]], steps: int) -> int:
    """Hands out blocks until the first of them hold `steps`; returns how many."""
    from tqdm import tqdm

    numbers = itertools.count()
    lengths: dict[int, int] = {}  # transitions of the blocks that are done
    lock = threading.Lock()

    def serve(worker: subprocess.Popen[str]) -> None:
        while worker.poll() is None:
            with lock:
                if _blocks_needed(lengths, steps) is not None:
                    return
                block = next(numbers)
            length = _ask(worker, block)
            if length is None:
                return
            with lock:
                lengths[block] = length
                bar.update(min(length, steps - bar.n))

    threads = [threading.Thread(target=serve, args=(w,), daemon=True) for w in workers]
    with tqdm(total=steps, unit=" steps", unit_scale=True, desc="collecting") as bar:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():  # short joins let Ctrl-C through
                thread.join(0.2)
    count = _blocks_needed(lengths, steps)
    if count is None:
        raise ValueError(
            "the collection's worker processes died (the lines above say why); nothing "
            "was stored"
        )
    return count


def _blocks_needed(lengths: dict[int, int], steps: int) -> int | None:
    """How many blocks from 0 on hold `steps`; None while that is not known."""
    total = 0
    for block in range(len(lengths)):
        if block not in lengths:
            return None
        total += lengths[block]
        if total >= steps:
            return block + 1
    return None


def _ask(worker: subprocess.Popen[str], block: int) -> int | None:
    """Has a worker play a block: its number of transitions; None if the worker died."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        worker.stdin.write(f"{block}\n")
        worker.stdin.flush()
        return int(json.loads(worker.stdout.readline())["steps"])
    except (OSError, ValueError):  # a closed pipe, an empty answer
        return None


@contextlib.contextmanager
def _workers(
    behaviour: Behaviour, seed: int, folder: Path, processes: int
) -> Iterator[list[subprocess.Popen[str]]]:
    """Worker processes, which are gone at the end however it comes."""
    package_root = str(ASSETS.parent.parent)
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    # One thread each: the processes share out the CPUs, and a matrix product that is
    # split over threads may round differently.
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    command = [sys.executable, "-m", "jdql.collect.worker"]
    command += ["--env", behaviour.env, "--seed", str(seed), "--folder", str(folder)]
    if behaviour.player:
        command += ["--player", behaviour.player]
    else:
        command += ["--policy", str(ASSETS / f"{behaviour.policy}.npz")]
        command += ["--sampled", str(int(behaviour.sampled))]
    workers = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **threads, "PYTHONPATH": path},
        )
        for _ in range(processes)
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()


def replay_file(level: str) -> Path:
    """The recorded training that `jdql/<level>-v0` is made of.

    Raises:
      FileNotFoundError: it is nowhere.
    """
    shared = Path(os.environ.get("JDQL_SHARED", ASSETS.parent.parent.parent / "shared"))
    name = level.replace("/", "_").replace("-", "_") + ".npz"
    path = shared / "data" / "replay" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"jdql/{level}-v0 is made of recorded training, and {path} is not there; "
            "set JDQL_SHARED to the folder that has data/replay, or train on medium"
        )
    return path
