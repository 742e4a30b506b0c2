"""Benchmarks: micro.py (handlers in process, pytest-benchmark), load.py (a running broker beside a bare server)."""
