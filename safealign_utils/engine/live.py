"""Half-made files and folders: names that say who makes them, and which of them nobody makes any
more.

A process is known by its machine, the machine's start, the PID namespace and its number: containers
may share a host name and each have a process 1, and numbers come again after a restart. What was
left in this very space of processes is judged by the process's number. What comes from elsewhere
(another container, another host, before a restart) counts as left only when nobody holds its lock
and nothing in it has changed for a week.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import sys
import time
import uuid
from functools import cache as once
from pathlib import Path

LOCK = ".lock"  # in a folder in the making; the system lets go of it as its owner ends in any way
WEEK = 7 * 24 * 3600.0


def hidden(name, kind):
    """A name for a file or folder in the making, `kind` "partial" or "old"; it says whose it is."""
    return f".{name}.{uuid.uuid4().hex[:8]}.{_space()}.{os.getpid()}.{kind}"


@contextlib.contextmanager
def whole(path, put=None):
    """A path beside a file's, to write it to: it is put in its place as the block ends well, else
    removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(hidden(path.name, "partial"))
    try:
        yield beside
        (put or os.replace)(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def claim(folder):
    """Hold the lock of a folder in the making as long as the block, or this process, lasts."""
    lock = Path(folder) / LOCK
    with open(lock, "w") as file:
        # a file system without locks: the name alone says whose it is
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield folder
        finally:
            lock.unlink(missing_ok=True)


def is_live(path):
    """Whether somebody may still be making what has a name of `hidden`."""
    *_, space, pid, _ = Path(path).name.rsplit(".", 3)
    if space == _space():
        return _is_running(int(pid))
    return _is_locked(Path(path)) or time.time() - _last_change(Path(path)) < WEEK


def remove_leftovers(folder):
    """Remove what nobody makes any more from a folder."""
    for path in Path(folder).glob(".*.*.*.*.*"):
        *_, pid, kind = path.name.rsplit(".", 2)
        if kind in ("partial", "old") and pid.isdigit() and not is_live(path):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@once
def _space():
    """Host name and a hash that tells this space of processes from every other."""
    host = socket.gethostname()
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        parts = [host, start, os.readlink("/proc/self/ns/pid")]
    except OSError:
        # elsewhere a machine is one space; a Linux that does not say gets one for each process
        parts = [host, uuid.uuid4().hex if sys.platform == "linux" else ""]
    return f"{host.replace('.', '-')}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:12]}"


def _is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _is_locked(folder):
    """Whether a process holds the folder's lock; one that cannot be asked counts as held."""
    try:
        with open(folder / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return False


def _last_change(path):
    """When anything in a folder was written last, seconds since 1970."""
    times = []
    for one in (path, *path.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            times.append(one.lstat().st_mtime)
    return max(times, default=time.time())
