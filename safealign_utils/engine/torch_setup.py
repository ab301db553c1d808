"""What torch and transformers are told once, before anything computes."""

import ctypes
import gc
import logging
import sys
from functools import cache as once

from . import boundary

MOST_THREADS = 1024
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def threads():
    """How many threads `SAFEALIGN_THREADS` asks for, 1 by default. Raises ValueError, which
    names it."""
    asked = dict(low=1, most=MOST_THREADS, fix="unset it for 1")
    return boundary.whole_number("SAFEALIGN_THREADS", 1, **asked)


@once
def set_up():
    """One thread, deterministic kernels, no progress bars. A policy or a scorer that is made calls
    it.

    `SAFEALIGN_THREADS` asks for more threads. Raises ValueError as `threads` does.
    """
    import torch
    import transformers

    _keep_memory()
    torch.set_num_threads(threads())  # two spinning processes are 10x slower
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nothing here reads uninitialised memory; filling it cost 9 % of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    transformers.utils.logging.disable_progress_bar()
    # Tied weights are saved once, by design.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)


def freeze_imports():
    """Tell the garbage collector that what is there now stays: each of its looks at a million
    objects of the libraries takes a third of a second, and every training ends with one."""
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


def give_back():
    """Hand freed memory back to the system: after a training of SmolLM2 glibc keeps 2.5 GB, in
    pieces between others that are in use."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _keep_memory():
    """Let glibc keep what a step frees for the next one: to get it anew cost 5 % of a step."""
    if libc := _glibc():
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # larger tensors go back to the system at once
        libc.mallopt(M_TRIM_THRESHOLD, 2**28)


def _glibc():
    """The C library where it is glibc, else None."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") else None
