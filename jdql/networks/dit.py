"""A diffusion transformer over sequences, conditioned by its norms (adaLN-zero).

The block is that of Peebles & Xie 2023, section 3.2; sizes, embeddings and
initialisation are those of CleanDiffuser (Dong et al. 2024), where it denoises the
trajectories of Decision Diffuser and of Diffusion Veteran (Lu et al. 2025).  The value
of a whole sequence is the latter's, by blocks without conditions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdql.networks.layers import Dense, XavierDense, mish, step_features
from jdql.networks.mlp import MLP
from jdql.networks.temporal_layers import embedded
from jdql.networks.transformer import NormalDense, check_heads
from jdql.types import Array, Float, Real

zeros = nn.initializers.zeros
ZeroDense = functools.partial(Dense, kernel_init=zeros, bias_init=zeros)
PlainNorm = functools.partial(
    nn.LayerNorm,
    epsilon=1e-6,
    use_scale=False,
    use_bias=False,
    use_fast_variance=False,
)
# PyTorch draws the kernels of queries, keys and values as one matrix, three times as
# wide as each: Xavier's bound for it is sqrt(6 / (F + 3F)).
attention_init = nn.initializers.variance_scaling(0.5, "fan_in", "uniform")
XavierAttention = functools.partial(
    nn.MultiHeadDotProductAttention,
    kernel_init=attention_init,
    out_kernel_init=nn.initializers.xavier_uniform(),
)


def sinusoids(dim: int) -> Callable[[Array], Array]:
    """Sinusoids of the raw diffusion step, see `step_features`."""
    return functools.partial(step_features, dim=dim)


class FourierStep(nn.Module):
    """Random Fourier features of a diffusion time in (0, 1], through two layers.

    Frequencies N(0, scale^2) that are not trained, cosines first: the features in both
    systems of CleanDiffuser.

    Attributes:
      dim: of the result, a multiple of 8; there are dim / 4 features.
      scale: deviation of the frequencies.
    """

    dim: int
    scale: float = 16.0

    @nn.compact
    def __call__(self, time: Real[Array, "*B"]) -> Float[Array, "*B E"]:
        """Maps times to `[*B, dim]`."""
        normal = nn.initializers.normal(self.scale)
        frequencies = self.param("frequencies", normal, (self.dim // 8,))
        angles = 2 * jnp.pi * time[..., None] * jax.lax.stop_gradient(frequencies)
        features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        return MLP((self.dim,), self.dim, dense=XavierDense, name="layers")(features)


def modulations(condition: Float[Array, "*B F"], count: int) -> list[Array]:
    """So many shifts, scales and gates, `[*B, 1, F]`, at first 0.

    Makes the module `modulation` in the module that calls it.
    """
    width = condition.shape[-1]
    drawn = ZeroDense(count * width, name="modulation")(nn.silu(condition))
    return jnp.split(drawn[..., None, :], count, axis=-1)


class DiTBlock(nn.Module):
    """x + gate attention(n(x)), and then x + gate MLP(n(x)).

    n(x) = (1 + scale) norm(x) + shift; shifts, scales and gates are functions of the
    condition that start at 0, so that at first a block is the identity.

    Attributes:
      heads: of attention.
    """

    heads: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "*B H F"], condition: Float[Array, "*B F"]
    ) -> Float[Array, "*B H F"]:
        """Keeps the shape of `x`."""
        F = x.shape[-1]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulations(condition, 6)
        attention = XavierAttention(self.heads, name="attention")
        # Deviation: in the code behind CleanDiffuser's published scores, n(x) takes the
        # place of x in the first sum.  This is the paper's, and their later code's.
        x = x + gate_a * attention(PlainNorm()(x) * (1 + scale_a) + shift_a)
        y = PlainNorm()(x) * (1 + scale_m) + shift_m
        return x + gate_m * MLP((4 * F,), F, nn.gelu, XavierDense, name="mlp")(y)


class DiT(nn.Module):
    """Denoises a sequence: `(x [*B, H, D], k, condition [*B, E]) -> [*B, H, D]`.

    The positions are sinusoids, so that a trained network takes any horizon.  The
    output is 0 at first.

    Attributes:
      width: F, of the tokens (both systems: 320 or 256, the heads' width 32).
      heads: of attention.
      depth: number of blocks.
      step_dim: E, dimension of the embeddings of step and condition.
      step: `(step_dim) -> (k -> [*B, E])`: `sinusoids` of a raw step, or `FourierStep`
        of a time in (0, 1].
      embed: embeds the condition; None leaves it as it is.
    """

    width: int = 320
    heads: int = 10
    depth: int = 2
    step_dim: int = 128
    step: Callable[[int], Callable[[Array], Array]] = sinusoids
    embed: MLP | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*B H D"],
        k: Real[Array, "..."],
        condition: Float[Array, "*B C"] | None = None,
        keep: Float[Array, "*B"] | None = None,
    ) -> Float[Array, "*B H D"]:
        """The prediction for a noisy sequence.

        Args:
          x: noisy sequences.
          k: diffusion steps, or times, as `step` takes them; a scalar or of the leading
            shape of `x`.
          condition: what the whole sequence answers to, of E numbers without `embed`.
            With it, None stands for a dropped one, whose embedding is 0.
          keep: 1, or 0 where the condition is dropped: multiplies the embedding.

        Raises:
          ValueError: the heads cannot share out the width, or the condition's embedding
            is of another dimension than the step's.
        """
        check_heads(self.width, self.heads)
        H, D = x.shape[-2:]
        seen = self._seen(k, embedded(self.embed, condition, keep, x.shape[:-2]))
        seen = jnp.broadcast_to(seen, (*x.shape[:-2], self.width))
        x = XavierDense(self.width, name="enter")(x)
        x = x + step_features(jnp.arange(H), self.width)
        for i in range(self.depth):
            x = DiTBlock(self.heads, name=f"block_{i}")(x, seen)
        shift, scale = modulations(seen, 2)
        return ZeroDense(D, name="leave")(PlainNorm()(x) * (1 + scale) + shift)

    def _seen(self, k: Array, condition: Array | None) -> Array:
        seen = self.step(self.step_dim)(jnp.asarray(k))
        if condition is not None and condition.shape[-1] != self.step_dim:
            raise ValueError(
                f"a condition of {condition.shape[-1]} numbers cannot be added to the "
                f"embedding of the diffusion step: embed it in {self.step_dim}"
            )
        seen = seen if condition is None else seen + condition
        for name in ("see_0", "see_1"):
            seen = mish(NormalDense(self.width, name=name)(seen))
        return seen


class SequenceBlock(nn.Module):
    """y = n(x) + attention(n(x)), and then y + MLP(n(y)), n being a plain norm.

    As in the authors' code of Diffusion Veteran, the first sum is of n(x), not of x.

    Attributes:
      heads: of attention.
    """

    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "*B H F"]) -> Float[Array, "*B H F"]:
        """Keeps the shape of `x`."""
        F = x.shape[-1]
        x = PlainNorm()(x)
        x = x + XavierAttention(self.heads, name="attention")(x)
        mlp = MLP((4 * F,), F, nn.gelu, XavierDense, name="mlp")
        return x + mlp(PlainNorm()(x))


class SequenceValue(nn.Module):
    """The value of a sequence, `[*B, H, D] -> [*B]`, read off its first token.

    The positions are sinusoids, as in `DiT`.

    Attributes:
      width: F, of the tokens (the authors' of Diffusion Veteran: 256).
      heads: of attention.
      depth: number of blocks.
    """

    width: int = 256
    heads: int = 4
    depth: int = 2

    @nn.compact
    def __call__(self, x: Float[Array, "*B H D"]) -> Float[Array, "*B"]:
        """The value; raises ValueError where the heads cannot share out the width."""
        check_heads(self.width, self.heads)
        positions = step_features(jnp.arange(x.shape[-2]), self.width)
        x = XavierDense(self.width, name="enter")(x) + positions
        for i in range(self.depth):
            x = SequenceBlock(self.heads, name=f"block_{i}")(x)
        return XavierDense(1, name="leave")(x[..., 0, :]).squeeze(-1)
