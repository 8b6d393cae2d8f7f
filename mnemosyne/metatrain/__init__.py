"""How the weights θ of a learned optimizer are found.

    theta, log = meta_train(Truncated(by_coordinate(rule, prepare, 24), tasks, MetaConfig()))

`Truncated` differentiates windows of training, `PES` and `Search` only measure it, `Replicas` runs several side by
side. `recipes` says how the shipped weights are made.
"""

from mnemosyne.metatrain.loop import meta_train
from mnemosyne.metatrain.pes import PES, PESConfig
from mnemosyne.metatrain.replicas import Replicas
from mnemosyne.metatrain.search import Search, SearchConfig
from mnemosyne.metatrain.students import by_coordinate, whole
from mnemosyne.metatrain.truncated import MetaConfig, Truncated

__all__ = [
    "PES",
    "MetaConfig",
    "PESConfig",
    "Replicas",
    "Search",
    "SearchConfig",
    "Truncated",
    "by_coordinate",
    "meta_train",
    "whole",
]
