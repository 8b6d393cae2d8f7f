"""What tasks train: small networks, and ViT, BERT and T5 at their public sizes with their checkpoints."""

from mnemosyne.tasks.models.bert import BERT
from mnemosyne.tasks.models.t5 import T5
from mnemosyne.tasks.models.transformer import count, shapes
from mnemosyne.tasks.models.vision import VISION

__all__ = ["BERT", "T5", "VISION", "count", "shapes"]
