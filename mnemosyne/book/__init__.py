"""What the notebooks need and users never: runs that keep what they compute, contenders, verdicts, plots, the studies.

run = open_run("07_mlps", scale, seed)                            # keeps what it computes, see `chapter`
rows = run.train(task, ADAM, 500)                                 # contenders are those of `mnemosyne.evaluate`
run.claim("fig10", held=every([…]), ours="…")                     # statements are those of `verdicts`
plotting.curves(ax, rows, "train_loss")
"""

from mnemosyne.book import drawings, explorer, plotting
from mnemosyne.book.bench import per_call
from mnemosyne.book.chapter import open_run
from mnemosyne.book.results import read_table
from mnemosyne.book.studies import (
    ablation,
    blocks,
    capacity,
    comparison,
    fine_tuning,
    larger,
    memformer_reading,
    memformers,
    overhead,
    prices,
    random_features,
    retrieval,
    rivals,
    tradeoffs,
    trained_memory,
    two_memories,
    variations,
)
from mnemosyne.book.studies.variations import Choice
from mnemosyne.book.verdicts import at_most, below, every, log_ratio, negated, share, some, within
from mnemosyne.evaluate import (
    ADAM,
    ADAM_BEYOND,
    LION,
    LION_PAPER,
    RMSPROP,
    SGD,
    best_rates,
    diverged,
    interval,
    meta_trained,
    nadamw_search,
    untuned,
)

__all__ = [
    "ADAM",
    "ADAM_BEYOND",
    "LION",
    "LION_PAPER",
    "RMSPROP",
    "SGD",
    "Choice",
    "ablation",
    "at_most",
    "below",
    "best_rates",
    "blocks",
    "capacity",
    "comparison",
    "diverged",
    "drawings",
    "every",
    "explorer",
    "fine_tuning",
    "interval",
    "larger",
    "log_ratio",
    "memformer_reading",
    "memformers",
    "meta_trained",
    "nadamw_search",
    "negated",
    "open_run",
    "overhead",
    "per_call",
    "plotting",
    "prices",
    "random_features",
    "read_table",
    "retrieval",
    "rivals",
    "share",
    "some",
    "tradeoffs",
    "trained_memory",
    "two_memories",
    "untuned",
    "variations",
    "within",
]
