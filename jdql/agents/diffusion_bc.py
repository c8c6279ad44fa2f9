"""Diffusion behaviour cloning: the policy of Diffusion-QL without a critic.

| paper (Wang, Hunt & Zhou, ICLR 2023) | here |
|---|---|
| eq. 1, the reverse chain as policy pi(a | s) | `samplers.make_sampler` |
| eq. 2, L_d, the behaviour-cloning loss | `losses.denoising_loss` |

As in the authors' code (`--algo bc`): no averaged actor, no clipping of gradients, and
one sample when acting, since there is no critic to choose by.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdql.agents.base import Agent, action_bounds, no_carry
from jdql.data.sampling import transitions
from jdql.diffusion import constraints, losses, reverse, samplers, schedules
from jdql.networks.mlp import NoiseNetwork
from jdql.optim import adam, gradient_step
from jdql.types import Array, DataSpec, Float, Int, Params, PRNGKeyArray, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are the authors'."""

    lr: float = 3e-4
    grad_norm: float | None = None  # the authors do not clip
    batch_size: int = 256
    # diffusion
    diffusion_steps: int = 5
    schedule: str = "vp"
    variance: str = "posterior"  # or "beta", the paper's text
    unroll: int = 1  # steps of the chain laid out in a row
    # networks
    hidden: tuple[int, ...] = (256, 256, 256)
    step_dim: int = 16
    # acting
    sampler: str = "ancestral"
    sample_steps: int | None = None  # None: diffusion_steps


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    actor: Params
    actor_opt: optax.OptState


class Draws(NamedTuple):
    """The noise of one update: diffusion steps `[B]` and standard normals `[B, A]`."""

    k: Int[Array, " B"]
    noise: Float[Array, "B A"]


def make(config: Config, spec: DataSpec) -> Agent:
    """Builds diffusion behaviour cloning.

    Args:
      config: settings.
      spec: sizes and action bounds of the data.

    Returns:
      The agent.

    Raises:
      ValueError: for settings out of range.
    """
    O, A, B = spec.observation_dim, spec.action_dim, config.batch_size
    K = config.diffusion_steps
    schedule = schedules.make_schedule(config.schedule, K)
    sampler = samplers.make_sampler(
        schedule,
        config.sampler,
        config.sample_steps,
        variance=config.variance,
        constraint=constraints.clip_to(*action_bounds(spec)),
        unroll=config.unroll,
    )
    actor = NoiseNetwork(A, config.hidden, config.step_dim)
    optimizer = adam(config.lr, config.grad_norm)

    def objective(params: Params, batch: Transition, draws: Draws):
        def predict(x_k, k):
            return actor.apply(params, x_k, k, batch.observation)

        return losses.denoising_loss(
            schedule, predict, batch.action, draws.k, draws.noise
        )

    def init(key: PRNGKeyArray) -> TrainState:
        params = actor.init(
            key, jnp.zeros((1, A)), jnp.zeros((), int), jnp.zeros((1, O))
        )
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def sample_batch(key, dataset) -> Transition:
        return transitions(key, dataset, B)

    def draw(key: PRNGKeyArray) -> Draws:
        k_key, noise_key = jax.random.split(key)
        k = jax.random.randint(k_key, (B,), 0, K)
        return Draws(k, jax.random.normal(noise_key, (B, A)))

    def update_step(state: TrainState, batch: Transition, draws: Draws):
        bc_loss, gradients = jax.value_and_grad(objective)(state.actor, batch, draws)
        params, opt = gradient_step(optimizer, state.actor, state.actor_opt, gradients)
        metrics = {"bc_loss": bc_loss, "actor_grad_norm": optax.tree.norm(gradients)}
        return TrainState(state.step + 1, params, opt), metrics

    def policy(state: TrainState) -> Params:
        return state.actor

    def act(policy: Params, carry, observation, key):
        def predict(x_k, k):
            return actor.apply(policy, x_k, k, observation[None])

        draws = reverse.draw_chain(key, sampler.draws, (1, A))
        return sampler.sample(predict, draws)[0], carry

    return Agent(init, sample_batch, draw, update_step, policy, no_carry, act)
