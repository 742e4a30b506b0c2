"""A message that comes in pieces."""
