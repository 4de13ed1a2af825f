"""How many clients a limit of open files allows, and the other way round. Each client may need a second
descriptor for its upstream."""

import sys

SPARE = 128
"""Descriptors for all that is no client of the proxy: log, data folder, libraries, the admin port. Where
there are few, half of them."""


def clients_for(descriptors: int) -> int:
    """How many clients can be served at once."""
    return max((descriptors - min(SPARE, descriptors // 2)) // 2, 1)


def descriptors_for(clients: int) -> int:
    """How many descriptors that takes."""
    return 2 * clients + SPARE


def clients_possible() -> int:
    """How many clients this process can serve at once.

    The soft limit is raised to the hard one first: it is low for programs that use select().
    """
    if sys.platform == "win32":
        return 1 << 30
    import resource  # noqa: PLC0415 - exists on POSIX only

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and hard != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return 1 << 30 if soft == resource.RLIM_INFINITY else clients_for(soft)
