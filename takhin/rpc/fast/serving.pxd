"""How the fast front serves the calls of a table by their handlers: a task for each."""
