"""Memformers: Transformers of linear attention that run first-order methods on the prompt they are given.

After Dutta and Sra, *Memory-augmented Transformers can implement linear first-order optimization methods* (arXiv
2410.07263, version 1). Here too a memory is an argument: what a layer attended to goes to it, and what it answers is
added to the prompt.

    model = Memformer(preconditioned, lfom, layers=4)      # or none, cgd_like, present, lfom_by_layer; or gdpp
    weights, curve = train(model, Recipe(), distributions, seeds, rates)
"""

from mnemosyne.memformers import methods
from mnemosyne.memformers.layers import (
    Attention,
    Memformer,
    Memory,
    attention,
    cgd_like,
    forward,
    gdpp,
    heads,
    init,
    lfom,
    lfom_by_layer,
    none,
    preconditioned,
    predict,
    present,
    steps,
    tied,
    unbound,
)
from mnemosyne.memformers.prompts import Distribution, Prompt, Tokens, asked, draw, skewed, transformed
from mnemosyne.memformers.training import Recipe, batch, errors, loss, train

__all__ = [
    "Attention",
    "Distribution",
    "Memformer",
    "Memory",
    "Prompt",
    "Recipe",
    "Tokens",
    "asked",
    "attention",
    "batch",
    "cgd_like",
    "draw",
    "errors",
    "forward",
    "gdpp",
    "heads",
    "init",
    "lfom",
    "lfom_by_layer",
    "loss",
    "methods",
    "none",
    "preconditioned",
    "predict",
    "present",
    "skewed",
    "steps",
    "tied",
    "train",
    "transformed",
    "unbound",
]
