"""How the command ends from outside: Ctrl-C, SIGTERM, a reader of its output that goes away.

Only the standard library is imported above: the command line stands on this file.
"""

import contextlib
import os
import signal
import sys
import threading

INTERRUPTED, TERMINATED, NOT_READ = 130, 143, 141  # 128 + the signal, as shells say it


def leave(status=INTERRUPTED, why="interrupted"):
    """End at once: kernels and all other processes below this one, then what is half-made."""
    with contextlib.suppress(OSError):
        words = "finished runs are kept, none is half-written"
        print(f"safealign: {why}; {words}", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    import psutil

    from ..engine import live

    with contextlib.suppress(psutil.Error):
        below = psutil.Process().children(recursive=True)
        for process in below:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(below, timeout=5)  # they write no more
    live.abandon()
    os._exit(status)


@contextlib.contextmanager
def on_sigterm():
    """Let SIGTERM end the process by `leave`, for a block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: leave(TERMINATED, "terminated"))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def open_standard_files():
    """Where standard output or error was closed, what is written there goes nowhere; otherwise the
    next file that is opened would get it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")


def lost_output(error=None):
    """(exit status, words) where standard output takes no more, None where it does.

    `error` is what ended the command, if anything did: one that names no file may be of a `print`,
    so that one more is tried.
    """
    unnamed = isinstance(error, OSError) and error.filename is None
    try:
        print(end="\n" if unnamed else "", flush=True)
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # Python flushes once more at its end
        os.close(nowhere)
        if isinstance(error, BrokenPipeError):
            return NOT_READ, ""
        return 1, f"standard output cannot be written ({error.strerror}); write it elsewhere"
    return None
