"""Memory of this process on a CPU."""

import ctypes
import sys


def release_freed_memory() -> None:
    """Gives what was freed back to the system. glibc keeps it between what is still used, and it counts as used."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # musl has none
        trim(0)
