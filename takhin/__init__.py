"""Takhin: a durable event log with a plain gRPC face."""

from importlib.metadata import version

__version__ = version("takhin")
