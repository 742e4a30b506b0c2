"""Nothing for other modules to cimport: it is called from Python alone."""
