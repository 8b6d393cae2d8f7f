"""One picture of the memory that sliders can move: what N, M, r, λ and ρ do (notebook 05).

draw(snapshot(n=16, memories=20, r=32, discount=0.1, rho=0.3))
sliders()      # the same in JupyterLab, with `pip install -e .[lab]`
"""

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from mnemosyne.book.plotting import COLORS, legend_below
from mnemosyne.memory.compact import CAMState, attend, read, write
from mnemosyne.memory.features import FeatureMap, favor_plus_plus, hyperbolic, mean_square_sum, orthogonal_projections
from mnemosyne.theory import energies, monte_carlo


class Snapshot(NamedTuple):
    """Everything the picture shows, as arrays."""

    n: int
    rho: float
    s: float  # typical ‖q+k‖² of these queries and keys
    weights: dict[str, np.ndarray]  # by kernel, what each of M memories weighs in the read, [M], oldest first
    strips: dict[str, np.ndarray]  # the pattern asked for, the input, and each memory's answer, ±1, [n]
    disagreement: float  # between recurrence and parallel form, relative


def snapshot(
    *, n: int = 16, memories: int = 20, r: int = 32, discount: float = 0.1, rho: float = 0.3, seed: int = 0
) -> Snapshot:
    """Store M random ±1 patterns one after another, then ask for the middle one with a sixth of its signs flipped.

    Args:
        n: N ≥ 2, the dimension.
        memories: M ≥ 1.
        r: features; the hyperbolic map gets half as many projections, so 2 at least.
        discount: λ ≥ 0 per stored pattern.
        rho: FAVOR++'s ρ ∈ (0, 1).
        seed: of patterns, corruption and projections.

    Raises:
        ValueError: for sizes and rates outside these ranges.
    """
    if n < 2 or memories < 1 or r < 2 or not discount >= 0:
        raise ValueError(f"needs N ≥ 2, M ≥ 1, r ≥ 2, λ ≥ 0, got N = {n}, M = {memories}, r = {r}, λ = {discount}")
    of_patterns, of_input, of_omega = jax.random.split(jax.random.key(seed), 3)
    xi = jax.random.rademacher(of_patterns, (memories, n), jnp.float32)
    beta = monte_carlo.corrupt(xi[memories // 2], of_input, n // 6)
    q, k = n**-0.25 * beta, n**-0.25 * xi  # attention's temperature
    fade = jnp.exp(-discount * jnp.arange(memories - 1, -1, -1.0))
    exact = fade * jnp.exp(k @ q)
    weights, disagreement = {"exact": exact / exact.sum()}, 0.0
    for name, phi in {"hyperbolic": hyperbolic, "FAVOR++": favor_plus_plus(rho)}.items():
        omega = orthogonal_projections(of_omega, r // phi.per_projection, n)
        estimate = fade * (phi.features(k, omega) @ phi.query(q, omega))
        weights[name] = estimate / estimate.sum()
        disagreement = max(disagreement, _disagreement(phi, q, k, xi, omega, discount))
    signs = lambda x: jnp.where(x > 0, 1.0, -1.0)
    strips = {"asked for": xi[memories // 2], "input": beta}
    strips["regular, downhill"] = energies.descend(energies.regular(xi), beta, of_input, sweeps=8)
    strips |= {f"read, {name}": signs(w @ xi) for name, w in weights.items()}
    as_numpy = lambda d: {name: np.asarray(x) for name, x in d.items()}
    return Snapshot(n, rho, float(mean_square_sum(q[None], k)), as_numpy(weights), as_numpy(strips), disagreement)


def _disagreement(phi: FeatureMap, q, k, content, omega, discount: float) -> float:
    """Recurrence (Eq. 4–5) against the parallel form, at every step, relative to the largest answer."""
    phi_k, phi_q = phi.features(k, omega), phi.query(jnp.broadcast_to(q, k.shape), omega)
    m, c = phi_k.shape[-1], content.shape[-1]
    empty = CAMState(jnp.zeros((c, m)), jnp.zeros(m))

    def one(state, x):
        state = write(state, x[1], x[2], discount)
        return state, read(state, x[0])

    _, recurrent = jax.lax.scan(one, empty, (phi_q, phi_k, content))
    parallel = attend(empty, phi_q, phi_k, content, discount)
    return float(jnp.abs(recurrent - parallel).max() / jnp.abs(recurrent).max())


def draw(shot: Snapshot) -> plt.Figure:
    """Three panels: variance against s (as 02), the weights of a read (as 01) and, below, the answers (as 04)."""
    fig = plt.figure(figsize=(5.5, 4.0))
    upper, lower = fig.subfigures(2, 1, height_ratios=[3, 2])
    (left, right), below = upper.subplots(1, 2), lower.subplots()
    s = np.geomspace(0.05, 60, 150)
    for name, rho in (("FAVOR+", 1.0), ("hyperbolic", 1.0), ("FAVOR++", shot.rho)):
        features_per_projection = 2 if name == "hyperbolic" else 1
        cost = features_per_projection * energies.relative_variance(s, shot.n, rho, name == "hyperbolic")
        left.plot(s, cost, color=COLORS[name], label=name)
    left.axvline(shot.s, color="0.4", ls="--", lw=0.8)
    left.set(xscale="log", yscale="log", ylim=(1e-2, 1e6), xlabel=r"$s=\|q+k\|^2$ (dashed: here)")
    left.set_title(rf"variance × features, $N$ = {shot.n}, $\rho$ = {shot.rho:g}")
    count = len(shot.weights["exact"])
    right.bar(range(count), shot.weights["exact"], color="0.8", label="exact")
    for name in ("hyperbolic", "FAVOR++"):
        right.plot(range(count), shot.weights[name], "o-", ms=2.5, lw=0.8, color=COLORS[name], label=name)
    right.plot([count // 2], [0], "^", color="black", ms=5, clip_on=False)
    right.set(xlabel="memory, oldest first (▲: asked for)", title="weights of the read")
    legend_below(upper, 4)
    below.imshow(
        np.stack(list(shot.strips.values())), cmap="gray_r", vmin=-1.6, vmax=1.6, aspect="auto", interpolation="nearest"
    )
    truth = shot.strips["asked for"]
    labels = [f"{name}: {int((x != truth).sum())} wrong" for name, x in shot.strips.items()]
    below.set_yticks(range(len(labels)), ["asked for", *labels[1:]])
    below.yaxis.tick_right()
    below.set(xticks=[], title="signs")
    below.grid(False)
    return fig


def sliders() -> str | None:
    """Show the picture with sliders for N, M, r, λ and ρ, or say what is missing.

    A batch run, which sets MNEMOSYNE_BATCH, shows none, so that a committed notebook holds no widget's state.
    """
    if os.environ.get("MNEMOSYNE_BATCH"):
        return "open this notebook in JupyterLab (`make lab`) and run this cell for the sliders"
    try:
        import ipywidgets as w
    except ImportError:
        return "sliders need ipywidgets: pip install -e '.[lab]'"

    def show(n, memories, r, discount, rho, seed):
        draw(snapshot(n=n, memories=memories, r=r, discount=discount, rho=rho, seed=seed))
        plt.show()

    later = {"continuous_update": False}
    w.interact(
        show,
        n=w.IntSlider(16, 2, 64, description="N", **later),
        memories=w.IntSlider(20, 1, 100, description="M", **later),
        r=w.SelectionSlider(options=[2**i for i in range(1, 13)], value=32, description="r", **later),
        discount=w.FloatSlider(0.1, min=0, max=1, step=0.01, description="λ", **later),
        rho=w.FloatSlider(0.3, min=0.02, max=0.98, step=0.02, description="ρ", **later),
        seed=w.IntSlider(0, 0, 20, description="seed", **later),
    )
    return None
