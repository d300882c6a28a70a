"""The optimisation loop and what surrounds it."""
