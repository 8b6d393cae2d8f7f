"""What the paper proves of its memories (§4, App. A.2): `energies` are the formulas, `monte_carlo` their trials."""
