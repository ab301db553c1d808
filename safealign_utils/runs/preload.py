"""What the process that kernels are forked from imports, once; no other process imports this file.

The order matters: OpenMP and BLAS read their numbers of threads, and matplotlib its backend, as
they are imported.
"""

import atexit
import importlib
import os
import signal
import sys
import weakref

PATH = [folder for folder in sys.path if folder]  # of a plain interpreter, as this process is one
os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # a process with threads cannot be forked safely
signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command

os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # the debugger would warn of frozen modules

import pandas

from ..engine.torch_setup import freeze_imports
from ..study import study  # noqa: F401

KERNEL = (  # what a kernel would import as it starts, and multiprocessing for it
    "ipykernel.kernelapp ipykernel.debugger IPython.core.completerlib IPython.core.debugger "
    "IPython.extensions.storemagic sqlite3 tornado.platform.asyncio "
    "traitlets.config.argcomplete_config typer"
)
for name in KERNEL.split():
    importlib.import_module(name)
pandas.set_option("display.max_columns", 20)  # it looks for a kernel as it is imported
atexit.register(os._exit, 0)  # taking apart what was imported would cost a second
for finalizer in weakref.finalize._registry:  # nor need a kernel do it
    finalizer.atexit = False
freeze_imports()  # the kernels never look at it again
