"""Three meta-steps on two quadratic bowls, as golden numbers. To renew: python -m tests.golden.make_golden"""

import json
from pathlib import Path

import jax
import numpy as np

PATH = Path(__file__).with_name("three_meta_steps.json")


def three_steps() -> dict[str, list[float]]:
    """Sums that any change of the computation would move: of θ's leaves, of the optimizees, of the log."""
    from tests.metatrain.test_truncated import META, TASKS, trainer

    t = trainer(coordinates=META.coordinates)._replace(tasks=TASKS)
    step, carry, losses = jax.jit(t.iterate), t.start(), []
    for _ in range(3):
        carry, measured = step(carry, tuple(task.data for task in TASKS))
        losses.append([float(measured["loss"]), float(measured["imitation"])])
    return {
        "theta": [float(np.abs(x).sum()) for x in jax.tree.leaves(carry.theta)],
        "parameters": [float(np.abs(s.x).sum()) for s in carry.slots],
        "losses": [x for pair in losses for x in pair],
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(three_steps(), indent=1) + "\n", encoding="utf-8")
