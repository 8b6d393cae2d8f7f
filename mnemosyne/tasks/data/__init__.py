"""What tasks are made of: images, text and tokens, read from files that a user has fetched, and checked."""

from mnemosyne.tasks.data.images import DataError, Dataset, fetch, load, pool, resize, signs, standardise
from mnemosyne.tasks.data.sources import SOURCES
from mnemosyne.tasks.data.text import load_text

__all__ = ["SOURCES", "DataError", "Dataset", "fetch", "load", "load_text", "pool", "resize", "signs", "standardise"]
