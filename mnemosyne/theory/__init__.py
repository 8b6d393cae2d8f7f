"""What the paper proves of its memories (§4, App. A.2): `energies` are the formulas, `monte_carlo` their trials."""

from mnemosyne.theory import energies, monte_carlo

__all__ = ["energies", "monte_carlo"]
