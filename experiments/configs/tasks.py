"""The table of tasks: data, simulator, and Diffusion-QL's authors' numbers for each.

    python -m experiments.run --list                             # all of them
    python -m experiments.run --list --config=walker2d_medium    # one, in words
    python -m experiments.run --config=walker2d_medium           # Diffusion-QL on it
    python -m experiments.run --config=edp:walker2d_medium       # another system

What the columns mean and where their numbers come from stands in
experiments/launch/task.py.  All else is the same for every task: `DataConfig`,
`TrainConfig`, `EvalConfig` and the defaults of `jdql.agents.diffusion_ql.Config`.
"""

from __future__ import annotations

from experiments.launch.task import EPOCH, Task
from jdql.config import Config

# Families -----------------------------------------------------------------------------

_COLLECTED = "where Minari's is not to be had, jdql collects its own and says so"
_RECORDED = "or the recorded training of jdql's own medium policy"
_NO_EXPERT = "jdql bundles no expert for this robot: that half must come from Minari"
_ROBOTICS = "the simulator needs pip install 'jdql[robotics]'"


def _locomotion(
    robot: str,
    level: str,
    grad_norm: float,
    top_k: int,
    expect: str,
    data: str = _COLLECTED,
) -> Task:
    """MuJoCo: eta 1, rewards as they are, 2000 epochs."""
    body = robot.lower()
    levels = ("medium", "expert") if level == "medium-expert" else (level,)
    return Task(
        name=f"{body}_{level}".replace("-", "_"),
        title=f"{robot}, {level} data",
        family="locomotion",
        datasets=tuple(f"mujoco/{body}/{one}-v0" for one in levels),
        data=data,
        stand_in="" if data == _COLLECTED else f"jdql.envs.synthetic:{body}",
        env=f"{robot}-v5",
        horizon=1_000,
        reference=body,
        eta=1.0,
        grad_norm=grad_norm,
        epochs=2_000,
        episodes=10,
        top_k=top_k,
        expect=expect,
        source=_table_1(f"{body}-{level}-v2", f"data and simulator ({robot}-v5)"),
        time=_time(2_000),
    )


# The mazes of evaluation: one start (r) and one goal (g) in opposite corners, as D4RL
# scores them; 1 is a wall.
_MAZES = {
    "umaze": "11111 1g001 11101 1r001 11111",
    "medium": "11111111 1r011001 10010001 11000111 10010001 10100101 100010g1 11111111",
    "large": "111111111111 1r0001000001 101101010101 100000010001 101111011101 "
    "100101000001 110101010111 100100010g01 111111111111",
}


def _antmaze(
    maze: str,
    env: str,
    eta: float,
    lr: float,
    grad_norm: float,
    max_q_backup: bool,
    top_k: int,
    expect: str,
) -> Task:
    """AntMaze: rewards (r - 0.5) * 4, 1000 epochs; a score is a share of successes."""
    size = maze.partition("-")[0]
    rows = [[int(c) if c in "01" else c for c in row] for row in _MAZES[size].split()]
    backup = "; the ten-fold backup takes two to three times that"
    return Task(
        name=f"antmaze_{maze}".replace("-", "_"),
        title=f"AntMaze {maze}",
        family="antmaze",
        datasets=(f"D4RL/antmaze/{maze}-v1",),
        data=f"a download of 605 MB; {_ROBOTICS}",
        stand_in="jdql.envs.synthetic:antmaze",
        env=f"AntMaze_{env}-v4",
        env_module="gymnasium_robotics",
        # Reaching the goal ends the episode: its return is 1, otherwise 0.
        env_kwargs={"maze_map": rows, "continuing_task": False},
        horizon=700 if size == "umaze" else 1_000,
        reference="antmaze",
        eta=eta,
        lr=lr,
        grad_norm=grad_norm,
        max_q_backup=max_q_backup,
        reward="antmaze",
        epochs=1_000,
        episodes=100,
        top_k=top_k,
        expect=expect,
        source=_table_1(f"antmaze-{maze}-v0", "Minari's recording and simulator"),
        time=_time(1_000) + (backup if max_q_backup else ""),
    )


def _pointmaze(maze: str, horizon: int) -> Task:
    """PointMaze: a goal that is always the same; the numbers are the project's own."""
    return Task(
        name=f"pointmaze_{maze}",
        title=f"PointMaze {maze}, D4RL's maze2d task",
        family="pointmaze",
        datasets=(f"jdql/pointmaze/{maze}-v0",),
        data="collected on the spot by jdql's noisy waypoint controller, 1,000,000 "
        f"transitions in a few minutes; {_ROBOTICS}",
        stand_in="jdql.envs.synthetic:pointmaze",
        env=f"jdql/PointMaze-{maze}-v0",
        env_module="jdql.envs.pointmaze",
        horizon=horizon,
        reference=f"pointmaze_{maze}",
        eta=1.0,
        grad_norm=5.0,
        epochs=1_000,
        episodes=20,
        top_k=1,
        expect="100 is the controller's score",
        source="on jdql's own scale, on which random actions score 0; Diffusion-QL was "
        "not tuned for it",
        time=_time(1_000),
    )


def _pen(level: str, eta: float, grad_norm: float, top_k: int, expect: str) -> Task:
    """The Adroit pen: lr 3e-5, rewards normalised, 1000 epochs."""
    return Task(
        name=f"pen_{level}",
        title=f"the Adroit pen, {level} data",
        family="pen",
        datasets=(f"D4RL/pen/{level}-v2",),
        data=_ROBOTICS,
        stand_in="jdql.envs.synthetic:pen",
        env="AdroitHandPen-v1",
        env_module="gymnasium_robotics",
        # The length of D4RL's reference returns; Gymnasium's episodes have 200 steps.
        env_kwargs={"max_episode_steps": 100},
        horizon=100,
        reference="pen",
        eta=eta,
        lr=3e-5,
        grad_norm=grad_norm,
        reward="normalize",
        epochs=1_000,
        episodes=100,
        top_k=top_k,
        expect=expect,
        source=_table_1(f"pen-{level}-v1", "Minari's replay and simulator"),
        time=_time(1_000),
    )


def _kitchen(
    level: str,
    todo: tuple[str, ...],
    grad_norm: float,
    epochs: int,
    top_k: int,
    expect: str,
) -> Task:
    """Franka kitchen: eta 0.005; the return counts the tasks done, four at most."""
    return Task(
        name=f"kitchen_{level}",
        title=f"Franka kitchen, {level} data",
        family="kitchen",
        datasets=(f"D4RL/kitchen/{level}-v2",),
        data=f"{_ROBOTICS} and mujoco older than 3.11",
        stand_in="jdql.envs.synthetic:kitchen",
        env="FrankaKitchen-v1",
        env_module="gymnasium_robotics",
        env_kwargs={"tasks_to_complete": list(todo)},
        horizon=280,
        reference="kitchen",
        eta=0.005,
        grad_norm=grad_norm,
        epochs=epochs,
        episodes=100,
        top_k=top_k,
        expect=expect,
        source=_table_1(f"kitchen-{level}-v0", "Minari's replay and simulator"),
        time=_time(epochs),
    )


def _table_1(dataset: str, others: str) -> str:
    return (
        f"the paper's table 1, on D4RL's {dataset}, by offline selection; {others} are "
        "others: not comparable"
    )


def _time(epochs: int) -> str:
    hours = round(0.022 * epochs)  # measured
    return (
        f"{epochs * EPOCH:,} updates; four seeds on two CPU cores take about {hours} "
        "hours, the quick variant minutes"
    )


# Tasks without a family of their own --------------------------------------------------

_BANDIT = Task(
    name="bandit",
    title="the Diffusion-QL paper's two-dimensional bandit",
    family="bandit",
    datasets=("jdql.envs.bandit:dataset",),
    data="made on the spot: 10,000 actions from four Gaussians at (+-0.8, +-0.8), with "
    "mean rewards 3.0, 0.0, 1.5 and 5.0; the best is the lower right one",
    env="jdql/Bandit-v0",
    env_module="jdql.envs.bandit",
    horizon=1,
    reference="bandit",
    # The authors', of their toy programs: eta, lr, no clipping and 100,000 updates.
    eta=2.5,
    grad_norm=None,
    epochs=100,
    # They do not evaluate: these are the project's own.
    every=10,
    episodes=100,
    top_k=1,
    expect="near 100",
    source="the policy keeps to the lower right mode, a return near 5, on a scale of "
    "jdql's own; the paper shows this as a picture, without a number",
    time="100,000 updates of a chain of 50 steps; the quick variant takes minutes",
)

# The numbers are the project's own; safety_halfcheetah.py says how they were chosen.
_SAFETY = Task(
    name="safety_halfcheetah",
    title="NeoRL-2's SafetyHalfCheetah: HalfCheetah below a speed limit",
    family="safety",
    datasets=("neorl2/SafetyHalfCheetah-high-100000-train.npz",),
    data="the 18,000 published training transitions, from polixir/neorl2_dataset. The "
    "file is looked for in $JDQL_SHARED/data/neorl2, or in shared/data/neorl2 beside "
    "the repository; --config.data.dataset=FILE.npz names another place",
    stand_in="jdql.envs.safety_halfcheetah:random_play",
    scale_observations="gaussian",
    env="jdql/SafetyHalfCheetah-v0",
    env_module="jdql.envs.safety_halfcheetah",
    horizon=1_000,
    reference="safety_halfcheetah",
    eta=0.1,
    grad_norm=5.0,
    epochs=6,
    every=3,
    episodes=10,
    top_k=1,
    expect="74.1 +- 0.9",
    source="three seeds of jdql's, 100 episodes each (BUILD_NOTES.md); published are "
    "BC 70.2, TD3+BC 68.6, CQL 71.2; the data's own is 73.6",
    time="6,000 updates; four seeds on two CPU cores take ten minutes, and held_out, "
    "twelve members, half an hour",
)

# The schedule of Diffusion Policy's authors is in diffusion_policy.py; eta, epochs and
# evaluation of the other systems are the project's own.
_PUSHT = Task(
    name="pusht",
    title="PushT: a disc pushes a T-shaped block into its place, human demonstrations",
    family="pusht",
    datasets=("jdql.data.pusht:training",),
    data="the 90 demonstrations of 206 that the authors train on; the simulator needs "
    "pip install 'jdql[pusht]'. pusht_lowdim.npz is looked for in "
    "$JDQL_SHARED/data/pusht, or in shared/data/pusht beside the repository; "
    "--config.data.dataset=FILE.npz takes all 206 of another place, and "
    "hf://datasets/lerobot/pusht_keypoints LeRobot's, whose observation needs "
    "--config.eval.env_kwargs.keypoints=corners",
    stand_in="jdql.envs.synthetic:pusht",
    scale_observations="limits",
    scale_actions="limits",
    env="jdql/PushT-v0",
    env_module="jdql.envs.pusht",
    horizon=300,
    reference="pusht",
    score="peak",
    seed=100_000,
    eta=1.0,
    grad_norm=None,
    epochs=200,
    every=20,
    episodes=50,
    top_k=0,
    expect="no score",
    source="the demonstrations have no rewards, of which a critic could learn. "
    "Diffusion Policy's authors have 95 at best and 91 on average, in this simulator "
    "and on these demonstrations (--config=diffusion_policy:pusht)",
    time="200,000 updates",
)

# Numbers of the project's own, as the environment is.
_TWO_ROUTE = Task(
    name="two_route",
    title="two routes around an obstacle, where mean actions lead into it",
    family="two_route",
    datasets=("jdql.envs.two_route:dataset",),
    data="made on the spot: 1000 demonstrations, left and right in turn",
    env="jdql/TwoRoute-v0",
    env_module="jdql.envs.two_route",
    horizon=20,
    reference="two_route",
    score="success",
    eta=1.0,
    grad_norm=None,
    epochs=20,
    every=5,
    episodes=50,
    top_k=0,
    expect="near 100",
    source="the share of episodes that get past the obstacle, on a scale of jdql's "
    "own; draws from the demonstrated actions do, their mean does not",
    time="20,000 updates; the quick variant takes minutes",
)


# The table ----------------------------------------------------------------------------

_SLIDE = ("microwave", "kettle", "light switch", "slide cabinet")
_BURNER = ("microwave", "kettle", "bottom burner", "light switch")

# fmt: off
_ROWS = (
    #           robot          level            grad_norm, top_k, score
    _locomotion("HalfCheetah", "medium",        9.0, 1, "51.1 +- 0.5"),
    _locomotion("HalfCheetah", "medium-replay", 2.0, 0, "47.8 +- 0.3", _RECORDED),
    _locomotion("HalfCheetah", "medium-expert", 7.0, 0, "96.8 +- 0.3", _NO_EXPERT),
    _locomotion("Hopper",      "medium",        9.0, 2, "90.5 +- 4.6"),
    _locomotion("Hopper",      "medium-replay", 4.0, 2, "101.3 +- 0.6", _RECORDED),
    _locomotion("Hopper",      "medium-expert", 5.0, 2, "111.1 +- 1.3"),
    _locomotion("Walker2d",    "medium",        1.0, 1, "87.0 +- 0.9"),
    _locomotion("Walker2d",    "medium-replay", 4.0, 1, "95.5 +- 1.5", _RECORDED),
    _locomotion("Walker2d",    "medium-expert", 5.0, 1, "110.1 +- 0.3"),
    #        maze              simulator         eta, lr, grad_norm, max-Q, top_k, score
    _antmaze("umaze",          "UMaze",             0.5, 3e-4, 2.0,  False, 2, "93.4"),
    _antmaze("umaze-diverse",  "UMaze",             2.0, 3e-4, 3.0,  True,  2, "66.2"),
    _antmaze("medium-play",    "Medium",            2.0, 1e-3, 2.0,  True,  1, "76.6"),
    _antmaze("medium-diverse", "Medium_Diverse_GR", 3.0, 3e-4, 1.0,  True,  1, "78.6"),
    _antmaze("large-play",     "Large",             4.5, 3e-4, 10.0, True,  2, "46.4"),
    _antmaze("large-diverse",  "Large_Diverse_GR",  3.5, 3e-4, 7.0,  True,  1, "56.6"),
    #          maze      steps
    _pointmaze("umaze",  300),
    _pointmaze("medium", 600),
    _pointmaze("large",  800),
    #    data      eta, grad_norm, top_k, score
    _pen("human",  0.15, 7.0, 2, "72.8"),
    _pen("cloned", 0.1,  8.0, 2, "57.3"),
    #        data        to be done  grad_norm, epochs, top_k, score
    _kitchen("complete", _SLIDE,     9.0,  250,   2, "84.0"),
    _kitchen("partial",  _SLIDE,     10.0, 1_000, 2, "60.5"),
    _kitchen("mixed",    _BURNER,    10.0, 1_000, 0, "62.6"),
    _BANDIT,
    _SAFETY,
    _PUSHT,
    _TWO_ROUTE,
)
# fmt: on
TASKS: dict[str, Task] = {task.name: task for task in _ROWS}


def of(config: Config) -> Task | None:
    """The task whose data a config has, if it is one of the table's."""
    rows = (task for task in _ROWS if task.datasets == config.data.dataset)
    return next(rows, None)
