"""The experiments of the chapters, one module each: they return rows, and chapters draw them."""

from mnemosyne.book.studies import (
    ablation,
    blocks,
    capacity,
    comparison,
    fine_tuning,
    random_features,
    retrieval,
    trained_memory,
    variations,
)

__all__ = [
    "ablation",
    "blocks",
    "capacity",
    "comparison",
    "fine_tuning",
    "random_features",
    "retrieval",
    "trained_memory",
    "variations",
]
