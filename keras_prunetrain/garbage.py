"""Python's search for objects that refer to each other in a circle."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Holds the search back while thousands of small objects are made.

    While the layers of a model are made, Python would search all of TensorFlow
    again and again: 15% of the time.
    """
    was_enabled = gc.isenabled()
    # An interrupt may come in the place of any line, but only once. The search
    # is let go twice, so that a line is left that does it.
    try:
        try:
            gc.disable()
            yield
        finally:
            if was_enabled:
                gc.enable()
    finally:
        if was_enabled:
            gc.enable()
