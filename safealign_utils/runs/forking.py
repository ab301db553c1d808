"""The process that imports everything once, and from which workers and kernels are forked (Linux).

It is the standard library's fork server: a plain interpreter without threads, so that a fork of it is safe.
"""

import contextlib
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
from pathlib import Path

HERE = __name__.rpartition(".")[0]
HOME = Path(__file__).parents[2]  # the folder that holds the package
PRELOAD = [f"{HERE}.fresh_kernel", f"{HERE}.cleaning", "ipykernel.kernelapp", "distributed"]


def fork_server():
    """Start the process that imports everything once, for this process and its children (Linux)."""
    if sys.platform == "linux":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        server = multiprocessing.forkserver._forkserver
        if (
            server.get_inherited_fds() is not None
        ):  # this process came from a server: it is the one to ask,
            server.ensure_running = lambda: (
                None
            )  # as the library's documentation says, and its code does not do
        with _deaf(), _one_thread(), _at_home():
            with _no_stderr():
                multiprocessing.resource_tracker.ensure_running()
            server.ensure_running()


@contextlib.contextmanager
def _deaf():
    """What is started here ignores Ctrl-C, which is for the parent."""
    mine = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if mine else None
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _one_thread():
    """What is started here has no threads of BLAS or OpenMP: a process with threads cannot be forked safely."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    unset = [name for name in names if name not in os.environ]
    os.environ.update(dict.fromkeys(unset, "1"))
    try:
        yield
    finally:
        for name in unset:
            del os.environ[name]


def is_found(path):
    """Whether an interpreter with this search path imports this very package, installed or not."""
    before = sys.path[:]
    sys.path[:] = path
    try:
        specs = [finder.find_spec(HERE.partition(".")[0], None) for finder in sys.meta_path]
    finally:
        sys.path[:] = before
    first = next((spec.origin for spec in specs if spec is not None), None)
    return first is not None and Path(first).parents[1] == HOME


@contextlib.contextmanager
def _at_home():
    """What is started here imports this package: a new interpreter looks first where it starts."""
    before = os.getcwd()
    os.chdir(HOME)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _no_stderr():
    """Standard error goes nowhere; the resource tracker would report semaphores after a Ctrl-C, and remove them."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept), os.close(nowhere)
