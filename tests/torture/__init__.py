"""Faults on purpose: kill -9, power cuts, torn tails, rotten bits, failing and full disks, bad requests, mutants.

Each module is a program (`python -m tests.torture.NAME`, or `make NAME`) that runs until a count or a time is reached
and ends with one line of figures; test_NAME.py runs a share of it that fits into the suite.
"""
