"""Memformers: Transformers of linear attention that run first-order methods on the prompt they are given.

After Dutta and Sra, *Memory-augmented Transformers can implement linear first-order optimization methods* (arXiv
2410.07263, version 1). Here too a memory is an argument: what a layer attended to goes to it, and what it answers is
added to the prompt.

    model = Memformer(layers.preconditioned(), layers.lfom(), layers=4)   # or none(), cgd_like(), present()
    weights, curve = train(model, Recipe(), distributions, seeds, rates)
"""

from mnemosyne.memformers import layers, methods, prompts, training
from mnemosyne.memformers.layers import Memformer, init, predict
from mnemosyne.memformers.prompts import Tokens, draw, skewed
from mnemosyne.memformers.training import Recipe, train

__all__ = [
    "Memformer",
    "Recipe",
    "Tokens",
    "draw",
    "init",
    "layers",
    "methods",
    "predict",
    "prompts",
    "skewed",
    "train",
    "training",
]
