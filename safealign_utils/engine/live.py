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
import secrets
import shutil
import socket
import sys
import time
import uuid
from functools import cache as once
from pathlib import Path

LOCK = ".lock"  # in a folder in the making; the system lets go of it as its owner ends in any way
WEEK = 7 * 24 * 3600.0
_making = set()  # paths of this process


def hidden(name, kind):
    """A name for a file or folder in the making, `kind` "partial" or "old"; it says whose it is,
    and nobody can guess it."""
    return f".{name}.{secrets.token_hex(8)}.{_space()}.{os.getpid()}.{kind}"


@contextlib.contextmanager
def whole(path, put=None, flushed=True):
    """A path beside a file's, to write it to: it is put in its place as the block ends well, else
    removed.

    It is flushed to the disk before, so that a power cut leaves the old file or the new one; what
    can be told from a torn one and made again need not be.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _removed(path.with_name(hidden(path.name, "partial"))) as beside:
        yield beside
        if flushed:
            flush(beside)
        (put or os.replace)(beside, path)
        if flushed:
            _sync(path.parent)


@contextlib.contextmanager
def whole_folder(final):
    """A new folder beside a folder's place. It is removed as the block ends: `put` it in its place
    before."""
    with _removed(final.with_name(hidden(final.name, "partial"))) as beside:
        beside.mkdir(parents=True)
        yield beside


def put(beside, final):
    """Rename a finished folder, all in it on the disk: a power cut leaves it whole, or not there.
    Raises OSError where something is in its place."""
    flush(beside)
    beside.rename(final)
    _sync(final.parent)


def flush(path):
    """Have a file, or a folder with all in it, on the disk itself."""
    path = Path(path)
    for one in (*path.rglob("*"), path):
        if one.is_dir() or one.is_file():
            _sync(one)


def _sync(path):
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError:
        if not path.is_dir():  # some file systems cannot flush a folder
            raise
    finally:
        os.close(file)


@contextlib.contextmanager
def _removed(path):
    """A file or folder in the making, removed as the block ends, and by `abandon`."""
    _making.add(path)
    try:
        yield path
    finally:
        _remove(path)
        _making.discard(path)


def abandon():
    """Remove all that this process has in the making: it is about to end."""
    for path in list(_making):
        _remove(path)


def _remove(path):
    with contextlib.suppress(OSError):
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


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
            _remove(path)


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
