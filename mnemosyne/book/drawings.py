"""The paper's diagrams, with real numbers in their boxes: arrays → figures. Nothing is computed here but norms."""

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array
from matplotlib.axes import Axes

from mnemosyne.book.plotting import COLORS, arrow, box, canvas, chain
from mnemosyne.book.studies.blocks import Stages
from mnemosyne.memory.compact import CAMState

GIVEN, MADE, KEPT, PLAIN = "#fbeee0", "#eef3f8", "#e3f1e8", "#f1f1f1"
"""Colours of boxes: what goes in and out, what is made of it, what remembers, what is beside the way."""


def coordinatewise(g: float, inputs: Array, patterns: list[Array], update: float) -> plt.Figure:
    """Draw the coordinate-wise rule at one step of one parameter (Fig. 2a).

    Args:
        g: its gradient.
        inputs: the two numbers that the rule sees of it.
        patterns: ξ [d] as embedded, and after each encoder.
        update: Δx.
    """
    embedded, *encoded = patterns
    fig, ax = canvas(5.5, 1.55)
    parts = [(0.85, f"gradient\n$g$ = {g:+.4f}", GIVEN)]
    parts += [(0.75, f"two inputs\n{inputs[0]:+.2f}, {inputs[1]:+.0f}", MADE)]
    parts += [(0.7, f"embedding\n{_length('ξ', embedded)}", MADE)]
    parts += [(0.75, f"encoder {i}\n{_length('ξ', x)}", KEPT) for i, x in enumerate(encoded, start=1)]
    parts += [(0.85, f"head\n$\\Delta x$ = {update:+.4f}", GIVEN)]
    lefts = chain(ax, 0.06, 0.9, 0.5, 0.14, parts)
    for left in lefts[3:-1]:
        box(ax, left - 0.04, 0.08, 0.83, 0.4, f"memory\n$N$ {2 * len(embedded)}×{len(embedded)}", PLAIN)
        arrow(ax, (left + 0.2, 0.9), (left + 0.2, 0.48))
        arrow(ax, (left + 0.55, 0.48), (left + 0.55, 0.9))
    ax.text(lefts[3] - 0.1, 0.65, "down: write, Eq. 4;  up: read, Eq. 5", ha="right", fontsize=7)
    return fig


def memory(
    key: Array, query: Array, phi_k: Array, phi_q: Array, state: CAMState, recalled: Array, discount: float
) -> plt.Figure:
    """Draw one write and one read of the compact memory (Fig. 1, the part on the right).

    Args:
        key: k.
        query: q.
        phi_k: its features, as written.
        phi_q: those of the query, as read with.
        state: the memory after the write.
        recalled: what is read.
        discount: λ per step.
    """
    content, features = state.N.shape
    fig, ax = canvas(5.5, 2.0)
    for y, name, symbol, z, phi in ((1.2, "key", "k", key, phi_k), (0.1, "query", "q", query, phi_q)):
        parts = [(0.8, f"{name}\n{_length(symbol, z)}", GIVEN)]
        parts += [(1.0, f"$\\phi({symbol})$, {features} numbers\nlargest {np.max(phi):.2f}", MADE)]
        chain(ax, 0.06, y, 0.5, 0.25, parts)
    kept = f"$N$ {features}×{content},  $\\Psi$ {features}\n{_length('N', state.N)}\n{_length('Ψ', state.Psi)}"
    parts = [(1.15, kept, KEPT), (1.0, f"read\n{content} numbers\nlength {np.linalg.norm(recalled):.2f}", GIVEN)]
    left, right = chain(ax, 2.75, 0.55, 0.7, 0.45, parts)
    arrow(ax, (2.11, 1.45), (left, 1.1))
    arrow(ax, (2.11, 0.35), (left, 0.7))
    ax.text(2.5, 1.4, "write", fontsize=7)
    ax.text(2.5, 0.33, "read", fontsize=7)
    ax.text(right - 0.25, 0.98, "ratio", ha="center", fontsize=7)
    arrow(ax, (left + 0.3, 1.25), (left + 0.85, 1.25), bend=-1.0)
    ax.text(
        left + 0.57, 1.75, f"$\\times\\ e^{{-\\lambda}}$ = {np.exp(-discount):.3f} every step", ha="center", fontsize=7
    )
    return fig


def small_network(sizes: dict[str, int], g: float, out: tuple[float, float], update: float) -> plt.Figure:
    """Draw small_fc at one step of one parameter, with real numbers in its boxes.

    Args:
        sizes: how many "kept", "inputs" and "units" there are.
        g: the parameter's gradient.
        out: what the network answers, direction and magnitude.
        update: Δx.
    """
    fig, ax = canvas(5.5, 0.75)
    parts = [(0.75, f"gradient\n$g$ = {g:+.4f}", GIVEN), (0.7, f"{sizes['kept']} running\nmeans", KEPT)]
    parts += [(0.55, f"{sizes['inputs']}\ninputs", MADE)]
    parts += [(0.5, f"{sizes['units']} units\nReLU", MADE)] * 2
    parts += [(0.65, f"$d$ = {out[0]:+.2f}\n$a$ = {out[1]:+.2f}", MADE), (0.65, f"$\\Delta x$ =\n{update:+.1e}", GIVEN)]
    chain(ax, 0.05, 0.12, 0.5, 0.17, parts)
    return fig


def _length(symbol: str, x: Array) -> str:
    return f"$\\|{symbol}\\|$ = {np.linalg.norm(x):.1f}"


def _heat(ax: Axes, x: float, y: float, w: float, h: float, matrix: Array) -> None:
    """Show a matrix at a place of a canvas, in colours that are white at zero."""
    inset = ax.inset_axes([x, y, w, h], transform=ax.transData)
    largest = float(np.abs(matrix).max()) or 1.0
    inset.imshow(matrix, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest")
    inset.set(xticks=[], yticks=[])
    inset.grid(False)
    inset.spines[:].set_visible(True)


def pooling(stages: Stages, length: int) -> plt.Figure:
    """Draw the hierarchical pooling encoder (HPE, Fig. 1, the part on the left) on one tensor.

    Args:
        stages: of the tensor, two levels of pooling.
        length: L, elements of a chunk.
    """
    gradient, flat = stages.gradient, stages.gradient.reshape(-1)
    n, d = stages.chunks.shape
    fig, ax = canvas(5.5, 1.95)
    _heat(ax, 0.08, 0.55, 0.95, 1.25, gradient)
    _below(ax, 0.55, f"gradient\n{gradient.shape[0]:,} × {gradient.shape[1]:,}")
    arrow(ax, (1.03, 1.17), (1.3, 1.17))
    for y, start in ((1.6, 0), (1.3, length), (0.6, length * (n - 1))):
        _heat(ax, 1.32, y, 0.75, 0.18, flat[None, start : start + length])
    ax.text(1.7, 1.06, "…", ha="center", va="center")
    _below(ax, 1.7, f"cut in {n:,}\nchunks of $L$ = {length}")
    for left, level in ((2.27, 1), (3.6, 2)):
        box(ax, left, 0.85, 0.62, 0.65, "Performer\nand one\ntoken", MADE)
        _below(ax, left + 0.31, f"level {level}\nby chunk")
        arrow(ax, (left - 0.2, 1.17), (left, 1.17))
        arrow(ax, (left + 0.62, 1.17), (left + 0.82, 1.17))
    _heat(ax, 3.1, 0.55, 0.3, 1.25, stages.chunks)
    _below(ax, 3.25, f"one each\n{n:,} × {d}")
    _heat(ax, 4.43, 0.85, 1.0, 0.65, stages.metatokens)
    _below(ax, 4.93, f"meta-tokens\n$l$ × $d$ = {len(stages.metatokens)} × {d}")
    return fig


def spatial(stages: Stages) -> plt.Figure:
    """Draw the spatial encoder (SPE): one vector of all meta-tokens, as the memories gave them back."""
    tokens, d = stages.remembered.shape
    fig, ax = canvas(5.5, 1.55)
    _heat(ax, 0.08, 0.55, 1.25, 0.85, stages.remembered)
    _below(ax, 0.7, f"out of the memory\n$l$ × $d$ = {tokens} × {d}")
    arrow(ax, (1.33, 0.97), (1.6, 0.97))
    box(ax, 1.62, 0.65, 0.8, 0.65, "Performer\nand one\ntoken", MADE)
    arrow(ax, (2.42, 0.97), (2.62, 0.97))
    weights = ax.inset_axes([2.9, 0.55, 1.0, 0.85], transform=ax.transData)
    weights.barh(range(tokens + 1), stages.attention, color=COLORS["Mnemosyne"])
    weights.set_yticks(range(tokens + 1), ["token", *range(1, tokens + 1)], fontsize=7)
    weights.invert_yaxis()
    weights.set(xticks=[])
    weights.grid(False)
    _below(ax, 3.35, f"weights of the read\nlargest {np.max(stages.attention):.2f}")
    arrow(ax, (3.95, 0.97), (4.2, 0.97))
    _heat(ax, 4.22, 0.87, 1.2, 0.2, stages.code[None])
    _below(ax, 4.82, f"$e$, {d} numbers\n{_length('e', stages.code)}")
    return fig


def tensorwise(stages: Stages, features: int, encoders: int) -> plt.Figure:
    """Draw the tensor-wise rule at one step of one tensor (Fig. 2b).

    Args:
        stages: of the tensor.
        features: m, of a memory.
        encoders: temporal ones, each with a memory for every meta-token.
    """
    n, k = stages.inputs.shape
    tokens, d = stages.remembered.shape
    fig, ax = canvas(5.5, 2.35)
    parts = [(0.85, "gradient\n" + " × ".join(f"{s:,}" for s in stages.gradient.shape), GIVEN)]
    parts += [(0.85, f"inputs $r$\n{n:,} × {k}", MADE), (0.85, f"HPE\n{tokens} meta-tokens", MADE)]
    parts += [(0.85, f"CAM in time\n{tokens} × {d}", KEPT), (0.85, f"SPE\n$e$, {d} numbers", MADE)]
    _, at_inputs, _, at_cam, at_spe = chain(ax, 0.08, 1.05, 0.45, 0.27, parts)
    box(
        ax,
        at_cam - 0.4,
        1.85,
        1.65,
        0.4,
        f"{encoders} memories a meta-token\n$N$ {features}×{d}, $\\Psi$ {features}",
        PLAIN,
    )
    arrow(ax, (at_cam + 0.25, 1.5), (at_cam + 0.25, 1.85))
    arrow(ax, (at_cam + 0.6, 1.85), (at_cam + 0.6, 1.5))
    box(ax, at_spe, 0.1, 0.85, 0.45, f"$[r_i, e]$\n{k + d} numbers", MADE)
    box(ax, at_cam, 0.1, 0.85, 0.45, "MLP\nfor each $i$", MADE)
    box(ax, at_cam - 1.32, 0.1, 1.05, 0.45, f"update $\\Delta x$\nlargest {np.abs(stages.update).max():.4f}", GIVEN)
    arrow(ax, (at_spe, 0.32), (at_cam + 0.85, 0.32))
    arrow(ax, (at_cam, 0.32), (at_cam - 0.27, 0.32))
    arrow(ax, (at_spe + 0.6, 1.05), (at_spe + 0.6, 0.55))
    ax.text(at_spe + 0.66, 0.76, "$e$", fontsize=7)
    turns = [at_inputs + 0.42, at_inputs + 0.42, at_spe + 0.25], [1.03, 0.8, 0.8]
    ax.plot(*turns, color="#345", lw=0.9)
    arrow(ax, (at_spe + 0.25, 0.82), (at_spe + 0.25, 0.55))
    ax.text(at_inputs + 0.5, 0.85, "$r_i$", fontsize=7)
    return fig


def _below(ax: Axes, x: float, text: str) -> None:
    """A caption of two lines at the foot of a drawing."""
    ax.text(x, 0.42, text, ha="center", va="top", fontsize=7, linespacing=1.35)
