"""What the process that kernels are forked from imports, once; no other process imports this file.

The order matters: OpenMP and BLAS read their numbers of threads, and matplotlib its backend, as
they are imported.
"""

import atexit
import gc
import os
import signal
import sys

PATH = [folder for folder in sys.path if folder]  # of a plain interpreter, as this process is one
os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # a process with threads cannot be forked safely
signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command

import ipykernel.kernelapp  # noqa: F401
import pandas

from ..study import study  # noqa: F401

pandas.set_option("display.max_columns", 20)  # it looks for a kernel as it is imported
atexit.register(os._exit, 0)  # taking apart what was imported would cost a second
gc.collect()
gc.freeze()  # the kernels never look at it again
