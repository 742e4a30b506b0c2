"""Oracles in plain Python: slow, readable, and independent of the code they judge."""
