"""Hypothesis gives the same examples every run, as it does for the core."""

from hypothesis import settings

settings.register_profile("telemetry", derandomize=True, deadline=None, database=None, max_examples=150)
settings.load_profile("telemetry")
