"""How much memory this process really has."""

import ctypes
import gc
import os
import pathlib


def resident_bytes():
    """Returns the resident memory, without what could go back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
