"""jdql's own datasets: bundled behaviour policies played in Gymnasium, as Minari files.

The episodes of a collection are numbered; number and seed fix every bit of an episode
(see `jdql.runtime.collect_worker`), and episodes are stored in order of their number.
The dataset is therefore the same for any number of processes.
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
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jdql.data import minari
from jdql.data.sources import DEFAULT_STEPS, local_id
from jdql.runtime.collect_worker import load_block

Episode = dict[str, np.ndarray]
ASSETS = Path(__file__).resolve().parent.parent / "assets"


class Behaviour(NamedTuple):
    """How a dataset is made: its environment, policy file and reference scores (D4RL)."""

    env: str
    policy: str
    sampled: bool
    reference: tuple[float, float]


HOPPER = (-20.272305, 3234.3)
WALKER = (1.629008, 4592.3)
CHEETAH = (-280.178953, 12135.0)

# D4RL collected with sampled actions.  The walker's best policy falls when sampled.
BEHAVIOURS = {
    "hopper/medium": Behaviour("Hopper-v5", "hopper_medium", True, HOPPER),
    "hopper/expert": Behaviour("Hopper-v5", "hopper_expert", True, HOPPER),
    "halfcheetah/medium": Behaviour(
        "HalfCheetah-v5", "halfcheetah_medium", True, CHEETAH
    ),
    "walker2d/medium": Behaviour("Walker2d-v5", "walker2d_medium", True, WALKER),
    "walker2d/expert": Behaviour("Walker2d-v5", "walker2d_expert", False, WALKER),
}
# Recorded training: no policy, a file.
REPLAYS = {
    "hopper/medium-replay": ("Hopper-v5", HOPPER),
    "halfcheetah/medium-replay": ("HalfCheetah-v5", CHEETAH),
    "walker2d/medium-replay": ("Walker2d-v5", WALKER),
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
      ValueError: no policy is bundled for it, or steps is not positive.
      FileNotFoundError: a medium-replay dataset, and its recorded training is absent.
    """
    if steps < 1:
        raise ValueError(f"collect_steps must be at least 1, it is {steps}")
    target = local_id(dataset_id, steps, seed)
    level = local_id(dataset_id).removeprefix("jdql/").removesuffix("-v0")
    if level not in BEHAVIOURS and level not in REPLAYS:
        raise ValueError(
            f"jdql cannot collect '{dataset_id}': no behaviour policy is bundled for "
            f"'{level}' (there are {', '.join([*BEHAVIOURS, *REPLAYS])})"
        )
    if minari.exists(target):
        log(f"{target} is already in {minari.root()}")
        return target
    start = time.monotonic()
    if level in REPLAYS:
        env, reference = REPLAYS[level]
        path = replay_file(level)
        log(f"storing the recorded training {path.name} as {target}")
        _store(target, read_replay(path), env, reference, "SAC, while training", "")
    else:
        behaviour = BEHAVIOURS[level]
        log(
            f"collecting {steps:,} transitions of {behaviour.env} as {target} with the "
            f"bundled policy {behaviour.policy} "
            f"({'sampled' if behaviour.sampled else 'greedy'} actions, seed {seed})"
        )
        episodes = cut(play(behaviour, steps, seed, processes), steps)
        how = (
            f"Bundled policy {behaviour.policy}, "
            f"{'sampled' if behaviour.sampled else 'greedy'} actions, seed {seed}. "
        )
        _store(target, episodes, behaviour.env, behaviour.reference, "SAC", how)
    log(f"stored {target} in {minari.root()} ({time.monotonic() - start:.0f} s)")
    return target


def cut(episodes: list[Episode], steps: int) -> list[Episode]:
    """The first `steps` transitions; the episode that reaches them is shortened.

    A shortened episode keeps the observation after its last action and has no true end.
    """
    kept: list[Episode] = []
    for episode in episodes:
        room = steps - sum(len(e["rewards"]) for e in kept)
        if room <= 0:
            break
        if len(episode["rewards"]) > room:
            episode = {
                "observations": episode["observations"][: room + 1],
                "actions": episode["actions"][:room],
                "rewards": episode["rewards"][:room],
                "terminated": np.False_,
            }
        kept.append(episode)
    return kept


def play(
    behaviour: Behaviour, steps: int, seed: int, processes: int | None = None
) -> list[Episode]:
    """Whole episodes 0, 1, 2, ... that hold at least `steps` transitions together."""
    processes = processes or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="jdql-", ignore_cleanup_errors=True) as tmp:
        folder = Path(tmp)
        with _workers(behaviour, seed, folder, processes) as workers:
            count = _play_blocks(workers, steps)
        blocks = [load_block(folder / f"block_{block}.npz") for block in range(count)]
    return [episode for block in blocks for episode in block]


def _play_blocks(workers: list[subprocess.Popen[str]], steps: int) -> int:
    """Hands out blocks until the first of them hold `steps`; returns how many."""
    from tqdm import tqdm

    numbers = itertools.count()
    lengths: dict[int, int] = {}
    failures: list[str] = []
    lock = threading.Lock()

    def reached() -> int | None:
        total = 0
        for block in itertools.count():
            if total >= steps:
                return block
            if block not in lengths:
                return None
            total += lengths[block]
        return None

    def serve(worker: subprocess.Popen[str]) -> None:
        assert worker.stdin is not None and worker.stdout is not None
        while not failures:
            with lock:
                if reached() is not None:
                    return
                block = next(numbers)
            try:
                worker.stdin.write(f"{block}\n")
                worker.stdin.flush()
                line = worker.stdout.readline()
            except (OSError, ValueError):
                line = ""
            if not line:
                failures.append(f"a worker of the collection died in block {block}")
                return
            with lock:
                lengths[block] = json.loads(line)["steps"]
                bar.update(min(lengths[block], steps - bar.n))

    bar = tqdm(total=steps, unit=" steps", unit_scale=True, desc="collecting")
    threads = [threading.Thread(target=serve, args=(w,), daemon=True) for w in workers]
    with bar:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():  # short joins let Ctrl-C through
                thread.join(0.2)
    count = reached()
    if failures or count is None:
        raise ValueError(f"{failures[0]}: the lines above say why; nothing was stored")
    return count


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
    command = [sys.executable, "-m", "jdql.runtime.collect_worker"]
    command += ["--env", behaviour.env, "--seed", str(seed), "--folder", str(folder)]
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


def read_replay(path: Path) -> list[Episode]:
    """The episodes of a recorded training (per episode, T + 1 observations)."""
    with np.load(path) as file:
        data = {name: file[name] for name in file.files}
    lengths = data["episode_lengths"]
    row_ends = np.cumsum(lengths + 1)
    step_ends = np.cumsum(lengths)
    return [
        {
            "observations": data["observations"][row_end - n - 1 : row_end],
            "actions": data["actions"][step_end - n : step_end],
            "rewards": data["rewards"][step_end - n : step_end],
            "terminated": terminated,
        }
        for n, row_end, step_end, terminated in zip(
            lengths, row_ends, step_ends, data["terminated"], strict=True
        )
    ]


def _buffer(number: int, episode: Episode) -> Any:
    from minari.data_collector import EpisodeBuffer

    length = len(episode["rewards"])
    at_end = np.arange(length) == length - 1
    return EpisodeBuffer(
        id=number,
        observations=episode["observations"],
        actions=episode["actions"],
        rewards=episode["rewards"],
        terminations=at_end & bool(episode["terminated"]),
        truncations=at_end & (not episode["terminated"]),
        infos={},
    )


def _store(
    dataset_id: str,
    episodes: list[Episode],
    env: str,
    reference: tuple[float, float],
    algorithm: str,
    how: str,
) -> None:
    """Writes a Minari dataset (HDF5), which appears whole or not at all."""
    import gymnasium
    import minari as minari_package
    import mujoco

    returns = [float(e["rewards"].sum(dtype=np.float64)) for e in episodes]
    whole = returns[:-1] if len(returns) > 1 and not episodes[-1]["terminated"] else returns
    description = (
        f"Collected by jdql in {env}, not the data of D4RL or of Minari. {how}"
        f"Mean return of whole episodes {np.mean(whole):.1f} +- {np.std(whole):.1f}. "
        f"Gymnasium {gymnasium.__version__}, MuJoCo {mujoco.__version__}."
    )
    made = gymnasium.make(env)
    spaces = made.observation_space, made.action_space
    low, high = (np.asarray(b, np.float32) for b in (spaces[0].low, spaces[0].high))
    with minari.staging(dataset_id), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Minari asks for an e-mail address
        minari_package.create_dataset_from_buffers(
            dataset_id,
            buffer=[_buffer(i, episode) for i, episode in enumerate(episodes)],
            env=env,
            observation_space=gymnasium.spaces.Box(low, high, dtype=np.float32),
            action_space=spaces[1],
            algorithm_name=algorithm,
            author="jdql",
            ref_min_score=reference[0],
            ref_max_score=reference[1],
            description=description,
            data_format="hdf5",
        )
    made.close()
