"""How many clients a limit of open files allows, and the other way round. Each client may need a second
descriptor for its upstream."""

SPARE = 128
"""Descriptors for all that is no client of the proxy: log, data folder, libraries, the admin port. Where
there are few, half of them."""


def clients_for(descriptors: int) -> int:
    """How many clients can be served at once."""
    return max((descriptors - min(SPARE, descriptors // 2)) // 2, 1)


def descriptors_for(clients: int) -> int:
    """How many descriptors that takes."""
    return 2 * clients + SPARE
