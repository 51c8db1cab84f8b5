"""A disk that is full."""

import contextlib
import resource


@contextlib.contextmanager
def full_disk(size=100):
    """No file can be longer than `size` bytes.

    This binds the whole process: outside of the context, pytest must be able to
    write its own report.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
