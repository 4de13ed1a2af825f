"""The core is tested without an event loop and without sockets; Hypothesis gives the same examples every run."""

from hypothesis import settings

settings.register_profile("core", derandomize=True, deadline=None, database=None, max_examples=150)
settings.load_profile("core")
