"""Messages that have come and wait to be read."""
