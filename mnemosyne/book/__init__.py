"""What the notebooks need and users never: runs that keep what they compute, verdicts, plots, the studies."""

from mnemosyne.book.chapter import Claim, open_run, read_table

__all__ = ["Claim", "open_run", "read_table"]
