"""Slow, obvious references, in float64 NumPy loops."""

import numpy as np


def exact_kernel(x, y):
    """K(x, y) = exp(xᵀy)."""
    return np.exp(np.sum(np.asarray(x, np.float64) * np.asarray(y, np.float64), axis=-1))


def discounted_attention(phi_q, phi_k, content, discount):
    """Eq. 3 and 5 as they are defined: a sum over the past for every t. Inputs [t m], [t m], [t c]."""
    phi_q, phi_k, content = (np.asarray(a, np.float64) for a in (phi_q, phi_k, content))
    outs = []
    for t in range(len(phi_q)):
        numerator, denominator = np.zeros(content.shape[1]), 0.0
        for i in range(t + 1):
            weight = np.exp(-discount * (t - i)) * (phi_q[t] @ phi_k[i])
            numerator += weight * content[i]
            denominator += weight
        outs.append(numerator / denominator)
    return np.array(outs)


def causal_softmax_attention(q, k, v):
    """softmax(q kᵀ) v with a causal mask, row by row."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    outs = []
    for t in range(len(q)):
        scores = np.exp(q[t] @ k[: t + 1].T)
        outs.append(scores @ v[: t + 1] / scores.sum())
    return np.array(outs)


def log_sign(g, p):
    """Andrychowicz et al. 2016, one number at a time."""
    g = float(g)
    if abs(g) >= np.exp(-p):
        return np.log(abs(g)) / p, np.sign(g)
    return -1.0, np.exp(p) * g


def energy(beta, memories):
    """Eq. 6, a sum of exponentials."""
    return -sum(np.exp(float(np.dot(beta, xi))) for xi in np.asarray(memories, np.float64))


def asynchronous_update(beta, memories, j):
    """Eq. 7: the sign of E with β_j = −1 less E with β_j = +1."""
    down, up = (np.array(beta, np.float64) for _ in range(2))
    down[j], up[j] = -1.0, 1.0
    return np.sign(energy(down, memories) - energy(up, memories))


def energy_change_variance(memories, beta, i, rho):
    """Theorem A.1 as it is written: six sums over pairs of memories."""
    xi, beta = np.asarray(memories, np.float64), np.asarray(beta, np.float64)
    n = len(beta)
    a = (1 / rho - 1) / 8
    b, d = np.sqrt(1 + 4 * a), (1 + 4 * a) ** (n / 4)
    other = beta.copy()
    other[i] = -other[i]

    def big_lambda(x):
        return d**4 * np.exp(-2 * n) * (1 + 8 * a) ** (-n / 2) * np.exp(b**2 / (2 * (1 + 8 * a)) * (x @ x))

    v = np.zeros(6)
    for x in xi:
        for y in xi:
            v[0] += big_lambda(x + y + 2 * beta)
            v[1] += big_lambda(x + y + 2 * other)
            v[2] += big_lambda(x + y + beta + other)
            v[3] += np.exp(x @ beta) * np.exp(y @ beta)
            v[4] += np.exp(x @ other) * np.exp(y @ other)
            v[5] += np.exp(x @ beta) * np.exp(y @ other)
    return v[0] + v[1] - 2 * v[2] - (v[3] + v[4] - 2 * v[5])
