"""Prompts have the distribution that they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.memformers import draw, prompts, skewed

STRETCH = jnp.array([1.0, 1.0, 0.5, 0.25, 1.0])


def test_the_last_column_is_the_query_and_its_y_is_the_answer():
    prompt = draw(skewed(STRETCH, jax.random.key(0)), 20, jax.random.key(1))
    assert prompt.tokens.x.shape == (5, 21)
    assert prompt.tokens.y[-1] == 0
    x, y = np.asarray(prompt.tokens.x, float), np.asarray(prompt.tokens.y, float)
    w = np.linalg.lstsq(x[:, :-1].T, y[:-1], rcond=None)[0]
    np.testing.assert_allclose(x[:, :-1].T @ w, y[:-1], atol=1e-4)
    np.testing.assert_allclose(prompt.answer, w @ x[:, -1], atol=1e-4)


def test_covariances_are_those_of_the_two_readings():
    rotation = jax.random.orthogonal(jax.random.key(0), 5)
    for stretch, power in ((STRETCH, 2), (jnp.sqrt(STRETCH), 1)):
        root, task = skewed(stretch, jax.random.key(0))
        sigma = rotation @ jnp.diag(STRETCH**power) @ rotation.T
        np.testing.assert_allclose(root @ root.T, sigma, atol=1e-5)
        np.testing.assert_allclose(task @ task.T @ sigma, np.eye(5), atol=1e-4)


def test_answers_have_variance_d():
    of = skewed(STRETCH, jax.random.key(0))
    answers = jax.vmap(lambda key: draw(of, 1, key).answer)(jax.random.split(jax.random.key(1), 20_000))
    # ⟨w, x⟩ is a product of two normal vectors: its fourth moment is 3 d (d + 2).
    assert abs(float(jnp.mean(answers**2)) - 5) < 4 * (3 * 5 * 7 / 20_000) ** 0.5


def test_other_coordinates_are_the_same_question():
    tokens = draw(skewed(STRETCH, jax.random.key(0)), 20, jax.random.key(1)).tokens
    matrix = jax.random.normal(jax.random.key(2), (5, 5))
    moved = prompts.transformed(tokens, matrix)
    np.testing.assert_allclose(moved.x, matrix @ tokens.x)
    np.testing.assert_array_equal(moved.y, tokens.y)


@pytest.mark.bad_input
@pytest.mark.parametrize("stretch", [[], [1.0, 0.0], [1.0, -1.0], [1.0, np.nan], [np.inf, 1.0], [[1.0]], 1.0])
def test_a_stretch_without_an_inverse_is_refused(stretch):
    with pytest.raises((ValueError, TypeError), match=r"stretch"):
        skewed(jnp.asarray(stretch), jax.random.key(0))


@pytest.mark.bad_input
@pytest.mark.parametrize("examples", [0, -3])
def test_a_prompt_without_examples_is_refused(examples):
    with pytest.raises(ValueError, match=f"at least 1 example, got {examples}"):
        draw(skewed(STRETCH, jax.random.key(0)), examples, jax.random.key(1))
