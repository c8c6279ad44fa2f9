from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import validate
from jdql.agents import diffusion_bc
from jdql.config import Config, DataConfig, TrainConfig
from jdql.data.sources import load
from jdql.diffusion.losses import denoising_loss
from jdql.diffusion.schedules import make_schedule
from jdql.networks.mlp import NoiseNetwork
from jdql.runtime import checkpoint, stored, train
from jdql.runtime.metrics import read_rows

TINY = {"hidden": (8, 8), "batch_size": 16, "diffusion_steps": 2}
DATA = DataConfig(
    dataset=("jdql.envs.safety_halfcheetah:random_play",),
    episodes="0:3",
    scale_observations="gaussian",
)


def quiet(line: str) -> None:
    """Takes the lines of a log."""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Config, Path]:
    """Two members, of which the second alone has learnt something."""
    folder = tmp_path_factory.mktemp("run")
    config = Config(
        name="held out",
        agent=diffusion_bc.Config(**TINY),
        data=DATA,
        train=TrainConfig(steps=6, log_every=3),
        seeds=1,
        sweep=(("agent.lr", (0.0, 0.01)),),
    )
    stored.save(config, folder)
    train.run(config, load(DATA, log=quiet), folder, log=quiet)
    return config, folder


def test_losses_on_held_out_data(run):
    """The loss is written out anew, on rows of the file scaled by hand."""
    config, folder = run
    held_out = dataclasses.replace(DATA, episodes="3:")
    rows = validate.validate(config, folder, held_out, batches=3)
    assert [row["agent.lr"] for row in rows] == [0.0, 0.01]
    assert [(row["seed"], row["step"], row["eta"]) for row in rows] == [(0, 6, 0.0)] * 2

    raw = load(DataConfig(dataset=DATA.dataset), log=quiet).dataset
    mean, std = raw.observation[:300].mean(0), raw.observation[:300].std(0)
    observations = jnp.asarray((raw.observation[300:] - mean) / std)
    actions = jnp.asarray(raw.action[300:])
    agent = diffusion_bc.make(config.agent, load(DATA, log=quiet).spec)
    keys = jax.random.split(jax.random.key(0), 2)
    shapes = jax.eval_shape(jax.vmap(agent.init), keys)
    states = checkpoint.restore_train(folder / "checkpoints", shapes)
    network, schedule = NoiseNetwork(6, (8, 8), 16), make_schedule("vp", 2)
    for member, row in enumerate(rows):
        params = jax.tree.map(lambda leaf, m=member: leaf[m], states.actor.params)
        losses = []
        for number in range(3):
            key = jax.random.fold_in(jax.random.key(validate.KEY), number)
            batch_key, draw_key = jax.random.split(key)
            index = jax.random.randint(batch_key, (16,), 0, 200)
            k, noise = agent.draw(draw_key)

            def predict(x, k, params=params, index=index):
                return network.apply(params, x, k, observations[index])

            loss = denoising_loss(schedule, predict, actions[index], k, noise)
            losses.append(loss.item())
        assert row["validation"]["bc_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
        error = np.std(losses, ddof=1) / np.sqrt(3)
        assert row["error"]["bc_loss"] == pytest.approx(error, rel=1e-3)
        assert row["train"]["bc_loss"] != row["validation"]["bc_loss"]
    assert rows[0]["validation"] != rows[1]["validation"]
    assert read_rows(folder / validate.FILE)[-2:] == rows


def row(eta: float, seed: int, loss: float) -> dict:
    return {"eta": eta, "seed": seed, "run": "r", "validation": {"bc_loss": loss}}


def test_eta_is_the_largest_within_a_standard_error_of_the_lowest():
    # Means over two seeds; the error of the lowest is sqrt(0.3^2 + 0.4^2) / 2 = 0.25.
    losses = {0.0: (1.1, 3.1), 0.1: (1.0, 3.0), 0.5: (1.2, 3.29), 1.0: (1.2, 3.31)}
    rows = [
        row(eta, seed, loss) | {"error": {"bc_loss": (0.3, 0.4)[seed]}}
        for eta, pair in losses.items()
        for seed, loss in enumerate(pair)
    ]
    chosen, found = validate.choose_eta(rows[::-1])
    assert chosen == 0.5
    assert list(found) == [0.0, 0.1, 0.5, 1.0]
    assert found[0.1] == pytest.approx((2.0, 0.25))
    assert "0.1: 2.00000 +- 0.25000" in validate.format_choice(rows)
    assert "chosen: eta = 0.5," in validate.format_choice(rows)
    with pytest.raises(ValueError, match="all rows have eta = 0"):
        validate.choose_eta(rows[:2])


def test_the_command_line(run, capsys):
    arguments = [f"--run={run[1]}", "--batches=3"]
    assert validate.main(arguments) == 1
    assert "give --data=FILE or --episodes" in capsys.readouterr().err
    assert validate.main([*arguments, "--episodes=0:3"]) == 1
    assert "was trained on" in capsys.readouterr().err
    assert validate.main([*arguments, "--episodes=3:"]) == 0
    assert "random_play[3:]" in capsys.readouterr().out
    assert validate.main([*arguments, "--episodes=3:", "--choose"]) == 1
    assert "all rows have eta = 0" in capsys.readouterr().err
