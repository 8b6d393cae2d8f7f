"""Optimizees: networks, data and losses. They know nothing of optimizers.

task = classify(data.load("mnist"), MLPSpec((20,), "relu"))   # a network, its data and its loss
part = trained_part(task, params, regimes.LAST_LAYER)         # some of its parameters, the others as they are
"""

from mnemosyne.tasks import data, regimes, sets, standins, suite
from mnemosyne.tasks.classification import MLPSpec, ViTSpec, classify, last_layer
from mnemosyne.tasks.data.sources import SOURCES
from mnemosyne.tasks.data.text import load_text
from mnemosyne.tasks.models.bert import BERT
from mnemosyne.tasks.models.t5 import T5
from mnemosyne.tasks.models.transformer import count, shapes
from mnemosyne.tasks.models.vision import VISION
from mnemosyne.tasks.regimes import SOFT_PROMPT, trained_part
from mnemosyne.tasks.standins import described
from mnemosyne.tasks.superglue import load_rows, prompted

__all__ = [
    "BERT",
    "SOFT_PROMPT",
    "SOURCES",
    "T5",
    "VISION",
    "MLPSpec",
    "ViTSpec",
    "classify",
    "count",
    "data",
    "described",
    "last_layer",
    "load_rows",
    "load_text",
    "prompted",
    "regimes",
    "sets",
    "shapes",
    "standins",
    "suite",
    "trained_part",
]
