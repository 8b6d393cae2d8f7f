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
