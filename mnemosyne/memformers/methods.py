"""What Memformers are measured against: the methods of linear algebra, step by step, on the same prompts.

    answers = conjugate_gradients(prompt.tokens, 4)              # after 0, 1, … 4 steps
    best = best_polynomials(spectra(distribution, 20, 10_000, seed=0), 4)

A method reads a prompt through S = Σ x_i x_iᵀ / n and b = Σ y_i x_i / n = S w. It makes w_k and answers ⟨w_k, x_{n+1}⟩.
A linear first-order method with fixed coefficients leaves the error w − w_k = p_k(S) w with a polynomial p_k of degree
k, p_k(0) = 1. So the best one for a distribution is a least-squares problem over polynomials.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.polynomial import Chebyshev, Polynomial

from mnemosyne.memformers.prompts import Distribution, Tokens
from mnemosyne.types import Scalar

Answers = Float[Array, " steps+1"]


def normal_equations(tokens: Tokens) -> tuple[Float[Array, "d d"], Float[Array, " d"]]:
    """S and b of a prompt."""
    x, y = tokens.x[:, :-1], tokens.y[:-1]
    return x @ x.T / y.size, x @ y / y.size


def _answers(tokens: Tokens, ws: Sequence[Array]) -> Answers:
    return jnp.stack(ws) @ tokens.x[:, -1]


def first_order(tokens: Tokens, gains: Float[Array, "k k"]) -> Answers:
    """w_{l+1} = w_l − Σ_{j ≤ l} Γ_{lj} (S w_j − b), from w_0 = 0: any linear first-order method by its coefficients."""
    (S, b), ws, gradients = normal_equations(tokens), [jnp.zeros(tokens.x.shape[0])], []
    for i in range(len(gains)):
        gradients.append(S @ ws[-1] - b)
        ws.append(ws[-1] - gains[i, : i + 1] @ jnp.stack(gradients))
    return _answers(tokens, ws)


def descent(rates: Sequence[float]) -> Float[Array, "k k"]:
    """Γ of gradient descent with a step length for each step."""
    return jnp.diag(jnp.asarray(rates, jnp.float32))


def momentum(alpha: Sequence[float], gamma: Sequence[float]) -> Float[Array, "k k"]:
    """Γ of r_l = g_l + γ_l r_{l−1}, w_{l+1} = w_l − α_l r_l: Γ_{lj} = α_l γ_l γ_{l−1} … γ_{j+1}."""
    k = len(alpha)
    rows = [[alpha[i] * np.prod(gamma[j + 1 : i + 1]) if j <= i else 0.0 for j in range(k)] for i in range(k)]
    return jnp.asarray(rows, jnp.float32).reshape(k, k)


def chebyshev(low: float, high: float, k: int) -> Float[Array, "k k"]:
    """Γ of k steps that make the largest |p_k| on [low, high] smallest; a ValueError unless 0 < low < high."""
    if not 0 < low < high:
        raise ValueError(f"the spectrum's ends must be 0 < low < high, got {low} and {high}")
    roots = np.cos(np.pi * (np.arange(k) + 0.5) / max(k, 1))
    return descent(2 / (high + low + (high - low) * roots))


def conjugate_gradients(tokens: Tokens, k: int) -> Answers:
    """A step is left out where, to rounding, the residual has vanished or S does not know the direction."""
    S, b = normal_equations(tokens)
    eps, known = jnp.finfo(b.dtype).eps, jnp.trace(S)

    def step(carry: tuple, _: None) -> tuple[tuple, Array]:
        w, r, direction = carry
        length, curvature = r @ r, direction @ S @ direction
        goes = (length > (8 * eps) ** 2 * (b @ b)) & (curvature > b.size * eps * known * (direction @ direction))
        alpha = jnp.where(goes, length / jnp.where(goes, curvature, 1.0), 0.0)
        w, r = w + alpha * direction, r - alpha * S @ direction
        direction = jnp.where(goes, r + r @ r / jnp.where(goes, length, 1.0) * direction, direction)
        return (w, r, direction), w

    _, ws = jax.lax.scan(step, (jnp.zeros_like(b), b, b), length=k)
    return _answers(tokens, [jnp.zeros_like(b), *ws])


def newton_schulz(tokens: Tokens, k: int) -> Answers:
    """V ← V (2 I − S V) from V = S / (‖S‖₁ ‖S‖_∞), w_k = V b: its polynomial doubles its degree in every step."""
    S, b = normal_equations(tokens)
    size = jnp.maximum(jnp.abs(S).sum(0).max() ** 2, jnp.finfo(S.dtype).tiny)
    step = lambda V, _: (V @ (2 * jnp.eye(len(S)) - S @ V),) * 2
    _, Vs = jax.lax.scan(step, S / size, length=k)
    return _answers(tokens, [jnp.zeros_like(b), *(Vs @ b)])


def gd_plus_plus(tokens: Tokens, rates: Sequence[float], shrinks: Sequence[float]) -> Answers:
    """A step of gradient descent on y, and x ← x − β S x: both from the same S, for each step."""
    answers = [jnp.zeros(())]
    for rate, shrink in zip(rates, shrinks, strict=True):
        S, b = normal_equations(tokens)
        tokens = Tokens(tokens.x - shrink * S @ tokens.x, tokens.y - rate * b @ tokens.x)
        answers.append(-tokens.y[-1])
    return jnp.stack(answers)


def ridge(tokens: Tokens, penalty: float | Scalar = 0.0) -> Scalar:
    """(S + penalty · I)⁻¹ b; without a penalty the shortest least-squares solution, also where S is singular."""
    S, b = normal_equations(tokens)
    values, vectors = jnp.linalg.eigh(S)
    # Below rounding, an eigenvalue of S is as good as zero.
    known = values + penalty > len(S) * jnp.finfo(S.dtype).eps * jnp.max(jnp.abs(values))
    w = vectors @ jnp.where(known, vectors.T @ b / jnp.where(known, values + penalty, 1.0), 0.0)
    return w @ tokens.x[:, -1]


# Polynomials, in float64 ----------------------------------------------------------------------------------------------


class Spectra(NamedTuple):
    """What a distribution says of polynomials: E (⟨w, x⟩ − ⟨w_k, x⟩)² = mean of Σ_ab p(λ_a) p(λ_b) M_ab."""

    values: Float[np.ndarray, "N d"]  # λ: eigenvalues of S
    weights: Float[np.ndarray, "N d d"]  # M_ab = (v_aᵀ Σ v_b)(v_aᵀ W v_b), v the eigenvectors, W = E w wᵀ


def spectra(distribution: Distribution, examples: int, draws: int, seed: int) -> Spectra:
    """Spectra of prompts drawn at random; the query and w are averaged over exactly."""
    root, task = (np.asarray(m, np.float64) for m in distribution)
    x = np.random.default_rng(seed).standard_normal((draws, examples, len(root))) @ root.T
    values, v = np.linalg.eigh(np.einsum("Nni,Nnj->Nij", x, x) / examples)
    between = lambda m: np.einsum("Nia,ij,Njb->Nab", v, m @ m.T, v, optimize=True)
    return Spectra(values, between(root) * between(task))


def expected_loss(p: Callable[[np.ndarray], np.ndarray], of: Spectra) -> float:
    """The mean squared error of the method that leaves p."""
    return float(np.einsum("Na,Nab,Nb->N", p(of.values), of.weights, p(of.values)).mean())


def residuals(gains: Float[Array, "k k"]) -> list[Polynomial]:
    """p_0 = 1, p_1, … p_k of a method with coefficients Γ: p_{l+1} = p_l − λ Σ_{j ≤ l} Γ_{lj} p_j."""
    gains, left = np.asarray(gains, np.float64), [Polynomial([1.0])]
    for i in range(len(gains)):
        left.append(left[-1] - Polynomial([0.0, 1.0]) * sum(g * p for g, p in zip(gains[i], left, strict=False)))
    return left


def best_polynomials(of: Spectra, k: int) -> list[Callable[[np.ndarray], np.ndarray]]:
    """For 0, 1, … k steps the p with the smallest expected loss: the best fixed linear first-order method.

    p(λ) = 1 − λ Σ_j c_j T_j(λ) with Chebyshev's T_j on [0, largest λ], in which least squares is well conditioned.
    """
    top, line, best = of.values.max(), Polynomial([0.0, 1.0]), [Polynomial([1.0])]
    for degree in range(1, k + 1):
        basis = [Chebyshev.basis(j, domain=(0, top)) for j in range(degree)]
        T = of.values[..., None] * np.stack([t(of.values) for t in basis], -1)
        weighted = np.einsum("Nab,Nbj->Naj", of.weights, T)
        c = np.linalg.solve(np.einsum("Naj,Nal->jl", T, weighted), weighted.sum((0, 1)))
        best.append(1.0 - line * sum(cj * t.convert(kind=Polynomial) for cj, t in zip(c, basis, strict=True)))
    return best
