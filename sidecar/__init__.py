"""Slipstream: a sidecar that stands in front of LLM HTTP APIs."""

__version__ = "0.1.0"
