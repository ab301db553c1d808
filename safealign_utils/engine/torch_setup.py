"""What torch and transformers are told once, before anything computes."""

import logging
import os
from functools import cache as once


@once
def set_up():
    """One thread, deterministic kernels, no progress bars. A policy or a scorer that is made calls
    it.

    `SAFEALIGN_THREADS` asks for more threads. Raises ValueError for what is no number of threads.
    """
    import torch
    import transformers

    given = os.environ.get("SAFEALIGN_THREADS", "1")
    if not given.isascii() or not given.isdigit() or not int(given):
        raise ValueError(f"SAFEALIGN_THREADS={given!r}: a whole number of threads, 1 or above")
    torch.set_num_threads(int(given))  # two spinning processes are 10x slower
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nothing here reads uninitialised memory; filling it cost 9 % of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    transformers.utils.logging.disable_progress_bar()
    # Tied weights are saved once, by design.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
