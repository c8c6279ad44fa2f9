"""Samplers as their papers have them, in numpy: what the tests compare with.

They work in sigma = noise / signal, or in e^-h as their paper does, and find the noise
levels for themselves.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jdql.diffusion import edm

M, S = 0.7, 0.3  # of the data


def signal_of(schedule):
    """sqrt(abar) at every k, integral or not."""
    table = np.log(schedule.signal)

    def signal(k, x):
        below = jnp.clip(jnp.floor(k).astype(int), 0, max(len(table) - 2, 0))
        ends = (jnp.asarray(table, x.dtype)[below + i] for i in (0, 1))
        low, high = ends
        return jnp.exp(low + (high - low) * (k - below))

    return signal


def denoise(x, sigma):
    """The exact denoiser of x / signal at sigma."""
    return (x * S**2 + M * sigma**2) / (S**2 + sigma**2)


def ends(schedule):
    sigma = schedule.noise / schedule.signal
    return sigma[-1], sigma[0]


def sigmas(schedule, grid, n):
    """The n noise levels of a grid, from high to low, by their definition."""
    high, low = ends(schedule)
    if grid == "log":
        return high * (low / high) ** (np.arange(n) / max(n - 1, 1))
    if grid == "karras":  # eq. 5
        ramp = np.arange(n) / max(n - 1, 1)
        return (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    if grid == "flow":
        time = np.linspace(1 / (1 + high), 1 / (1 + low), n)
        return (1 - time) / time
    K = schedule.steps
    k = np.linspace(K - 1, 0, n)
    if n <= K:
        k = np.array([round(float(value) + 1e-9) for value in k])
    abar = np.exp(np.interp(k, np.arange(K), np.log(schedule.signal**2)))
    return np.sqrt(1 / abar - 1)


def signal_at(sigma):
    return 1 / np.hypot(1, sigma)


# Each takes a start and draws as the network's process has them, the noise levels from
# high to low, a denoiser (x, sigma) -> x_0 in the scale of x_0 + sigma noise, and what
# holds a sample (x, sigma) -> x in that scale.


def free(x, sigma):
    return x


def euler(start, z, sigma, denoise=denoise, hold=free):
    """Euler's method on Karras et al.'s process."""
    x = hold(start / signal_at(sigma[0]), sigma[0])
    for now, after in zip(sigma, np.append(sigma[1:], 0), strict=True):
        x = hold(x + (after - now) * (x - denoise(x, now)) / now, after)
    return x


def multistep(start, z, sigma, denoise=denoise, hold=free, lower_order_last=False):
    """Algorithm 2 of Lu et al. 2022, in their variables."""
    a, s = signal_at(sigma), sigma * signal_at(sigma)

    def held(x, i):
        return a[i] * hold(x / a[i], sigma[i])

    x, before, h_before = held(start, 0), None, None
    for i in range(len(sigma) - 1):
        x0 = denoise(x / a[i], sigma[i])
        h = np.log(a[i + 1] / s[i + 1]) - np.log(a[i] / s[i])
        D = x0
        if before is not None and not (lower_order_last and i == len(sigma) - 2):
            r = h_before / h
            D = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        x = held(s[i + 1] / s[i] * x - a[i + 1] * np.expm1(-h) * D, i + 1)
        before, h_before = x0, h
    return denoise(x / a[-1], sigma[-1])


def heun(start, z, sigma, denoise=denoise, hold=free, churn=edm.NO_CHURN):
    """Algorithm 2 of Karras et al. 2022, sigma never above the schedule's."""
    n = len(sigma)
    x = start / signal_at(sigma[0])
    for i, (now, after) in enumerate(zip(sigma, np.append(sigma[1:], 0), strict=True)):
        if churn.amount and churn.low <= now <= churn.high:
            hat = min(now * (1 + min(churn.amount / n, 2**0.5 - 1)), sigma[0])
            x = x + np.sqrt(hat**2 - now**2) * churn.noise * z[i]
            now = hat
        x = hold(x, now)
        d = (x - denoise(x, now)) / now
        x_after = hold(x + (after - now) * d, after)
        if after > 0:
            d_after = (x_after - denoise(x_after, after)) / after
            x_after = x + (after - now) * (d + d_after) / 2
        x = x_after
    return x


def unmoved(x, *_):
    return x


def ddpm(
    start,
    z,
    sigma,
    denoise=denoise,
    hold=free,
    variance="posterior",
    before=unmoved,
    after=unmoved,
):
    """Ho et al.'s eqs. 6 and 7 on the process of these levels.

    `before(x, i, var)` moves a sample before its step, `after` its mean.
    """
    x = hold(start, 0)
    for i, now in enumerate(signal_at(sigma) ** 2):
        left = signal_at(sigma[i + 1]) ** 2 if i + 1 < len(sigma) else 1.0
        beta = 1 - now / left
        posterior = beta * (1 - left) / (1 - now)
        added = {"posterior": posterior, "beta": beta if left < 1 else 0.0}[variance]
        x = before(x, i, added)
        mean = beta * np.sqrt(left) / (1 - now) * denoise(x / np.sqrt(now), sigma[i])
        mean = mean + (1 - left) * np.sqrt(1 - beta) / (1 - now) * x
        x = hold(after(mean, i, added) + np.sqrt(added) * z[i], 0)
    return x


ODES = {
    "ddim": (euler, "even"),
    "flow": (euler, "flow"),
    "dpmpp_1": (euler, "log"),
    "dpmpp_2m": (multistep, "log"),
    "edm_heun": (heun, "karras"),
}
ALGORITHMS = {"ancestral": (ddpm, "even"), **ODES}
