"""Slipstream inside Starlette apps. Reserved: this version has no features of its own here yet."""
