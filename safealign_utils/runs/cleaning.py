"""What a warm kernel remembers after its imports, and how it becomes clean again (runs inside the kernel)."""

import contextlib
import gc
import os
import random
import sys
import threading
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython import get_ipython

(
    gc.collect(),
    gc.freeze(),
)  # once, before kernels are forked: what is imported is never looked at again
INLINE = "module://matplotlib_inline.backend_inline"


def remember():
    """Note the state after the imports, and give the shell a `safealign_reset()`.

    What it cannot undo: functions of other libraries that a notebook replaced, logging levels, IPython extensions.
    """
    shell = get_ipython()
    shell.enable_matplotlib("inline")  # as a kernel does at the first figure
    dict.__setitem__(plt.rcParams, "backend", INLINE)  # it has two names
    _pandas_as_in_a_kernel()
    modules, environment, path, here = (
        set(sys.modules),
        dict(os.environ),
        list(sys.path),
        os.getcwd(),
    )
    style, filters, printing, errors = (
        dict(plt.rcParams),
        list(warnings.filters),
        np.get_printoptions(),
        np.geterr(),
    )
    threads, kind = set(threading.enumerate()), torch.get_default_dtype()
    number, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    transformers = list(shell.input_transformers_cleanup)

    def reset():
        left = [t for t in threading.enumerate() if t not in threads and t.is_alive()]
        if left:
            raise RuntimeError(f"threads are left: {left}")
        plt.close("all")
        shell.reset(new_session=True)
        shell.input_transformers_cleanup[:] = transformers
        for name in [
            name for name, module in sys.modules.items() if _is_ours(name, module, modules)
        ]:
            del sys.modules[name]
        os.environ.clear(), os.environ.update(environment), os.chdir(here)
        sys.path[:], warnings.filters[:] = path, filters
        dict.update(plt.rcParams, style)
        _pandas_as_in_a_kernel()
        np.set_printoptions(**printing), np.seterr(**errors)
        torch.set_default_dtype(kind), torch.set_num_threads(number), torch.set_grad_enabled(True)
        torch.use_deterministic_algorithms(strict), torch.set_default_device(None)
        torch.set_float32_matmul_precision("highest")
        _new_seeds()
        gc.collect()
        with contextlib.suppress(
            OSError
        ):  # Linux: peak memory is this run's, not that of the runs before
            Path("/proc/self/clear_refs").write_text("5")

    shell.safealign_reset = reset
    _new_seeds()
    gc.freeze()


def _new_seeds():
    """Random generators start anywhere, as in a new process: what needs a seed sets one."""
    random.seed(), np.random.seed(), torch.seed()


def _pandas_as_in_a_kernel():
    """pandas looks for a kernel when it is imported; in the process that kernels are forked from there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pd.reset_option("all")
    pd.set_option("display.max_columns", 20)


def _is_ours(name, module, known):
    """The kit's modules, and those that a notebook imported from elsewhere than the environment."""
    if name.partition(".")[0] == "safealign_utils":
        return True
    file = getattr(module, "__file__", None) or ""
    installed = file.startswith((sys.prefix, sys.base_prefix)) or "site-packages" in file
    return name not in known and bool(file) and not installed
