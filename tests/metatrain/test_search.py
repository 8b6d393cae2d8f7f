from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnemosyne.metatrain.loop import meta_train
from mnemosyne.metatrain.search import RATES, Search, SearchConfig, fitness_of, utilities
from tests.helpers import check_resumed
from tests.metatrain.test_pes import LOG_RATE, bowl

NOTHING = jnp.zeros((2, 1))
CONFIG = SearchConfig(iterations=6, steps=16, marks=(8, 16), pairs=4)


def search(**change):
    return Search(LOG_RATE, (bowl("flat", 1.0), bowl("steep", 2.0)), replace(CONFIG, **change))


def test_it_finds_a_learning_rate():
    theta, log = meta_train(search(iterations=20, sigma=1.0))
    assert -2.5 < float(theta["log_rate"]) < 0.5
    assert log[-1]["last"] < log[0]["last"] - 1.0


def test_a_killed_search_ends_in_the_same_bits(tmp_path):
    check_resumed(search(), tmp_path, die_at=4)


def test_fitness_is_one_run_from_the_start():
    s = search()
    task, theta, key = s.tasks[0], {"log_rate": jnp.float32(-1.0)}, jax.random.key(3)
    init_key, batch_key = jax.random.split(key)
    params, losses = task.init(init_key), []
    for t in range(16):
        loss, g = jax.value_and_grad(task.loss)(params, task.batch(task.data, jax.random.fold_in(batch_key, t)))
        params = jax.tree.map(lambda p, g: p - jnp.exp(-1.0) * g, params, g)
        losses.append(float(loss))
    wanted = np.log([np.mean(losses[6:8]), np.mean(losses[12:16])])
    tx = s.learned.make(theta)
    assert np.allclose(s.fitness(task, task.data, tx, key), wanted, rtol=1e-3)
    above = np.log(np.exp(wanted) + 0.5 * losses[0])
    assert np.allclose(search(floor=0.5).fitness(task, task.data, tx, key), above, rtol=1e-3)


def test_an_emphasis_compares_with_the_best_adam_of_the_first_generation():
    s = search(emphasis=1.0)
    data = tuple(task.data for task in s.tasks)
    first, _ = s.iterate(s.start(), data)
    second, _ = s.iterate(first, data)
    key = jax.random.fold_in(jax.random.key(0), 0)
    each = [s.fitness(s.tasks[1], data[1], optax.adam(rate), jax.random.fold_in(key, 1)) for rate in RATES]
    assert np.allclose(first.adam[1], np.min(each, axis=0), rtol=1e-4)
    assert np.array_equal(second.adam, first.adam)
    assert not search().iterate(search().start(), data)[0].adam.any()


def test_lost_runs_and_outliers_count_as_the_bound():
    found = jnp.array([[[1.0], [2.0], [3.0], [jnp.nan], [9.0]]])
    assert np.allclose(fitness_of(found, NOTHING[:1], 1.5, 0.0), [-1.5, -1.0, 0.0, 1.5, 1.5])
    all_lost = jnp.full((2, 3, 1), jnp.inf)
    for emphasis in (0.0, 1.0):
        assert np.allclose(fitness_of(all_lost, NOTHING, 1.0, emphasis), 0.0)  # which says nothing


def test_tasks_count_for_more_where_candidates_are_behind_adam():
    """Either candidate is better on one task. Their median has Adam's loss on the first, twice it on the second."""
    found, adam = jnp.log(jnp.array([[[1.0], [2.0]], [[4.0], [2.0]]])), jnp.log(jnp.array([[2.0**0.5], [2.0**0.5]]))
    assert np.allclose(fitness_of(found, adam, 9.0, 0.0), 0.0, atol=1e-6)
    wanted = np.log(2.0) / 2 * (1 - 2**1.0) / (1 + 2**1.0)
    assert np.allclose(fitness_of(found, adam, 9.0, 1.0), [-wanted, wanted], atol=1e-6)
    assert np.allclose(fitness_of(found, adam - 20.0, 9.0, 1.0), 0.0, atol=1e-6)  # a weight is at most 10
    lost = adam.at[1].set(jnp.nan)  # where every Adam is lost, the task counts as one that is level with it
    assert np.allclose(fitness_of(found, lost, 9.0, 1.0), 0.0, atol=1e-6)


def test_utilities_rank_and_add_up_to_nothing():
    u = utilities(jnp.array([0.3, -1.0, 5.0, 0.0]))
    assert np.isclose(u.sum(), 0.0, atol=1e-6)
    assert np.argmax(u) == 1
    assert u[2] == u.min()


def test_equal_losses_are_worth_the_same():
    u = utilities(jnp.array([1.0, 1.0, 0.0, 2.0, 1.0]))
    assert u[0] == u[1] == u[4]
    assert u[2] > u[0] > u[3]
    assert np.allclose(utilities(jnp.ones(6)), 0.0, atol=1e-6)  # where all are equal, nothing moves


def test_marks_beyond_a_run_are_refused():
    with pytest.raises(ValueError, match="must lie between 4 and the 16 steps"):
        search(marks=(8, 20))
