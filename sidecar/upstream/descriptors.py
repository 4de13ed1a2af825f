"""Whether this process can open anything: a socket, a file, what a look-up of a name needs."""

import errno
import os

NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
"""What the kernel says when none is free: to this process, or to any."""


def descriptor_free(spare: int = 2) -> bool:
    """Whether a descriptor could be had now. `spare`: one that is open."""
    try:
        os.close(os.dup(spare))
    except OSError as error:
        return error.errno not in NO_DESCRIPTOR
    return True
