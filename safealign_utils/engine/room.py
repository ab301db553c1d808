"""The cache's limit: where its entries would take more than SAFEALIGN_CACHE_GB, the least recently
used go.

Several processes may write at once: each looks at the folder again before it has written a quarter
of what was free. What is being trained (`partial/`) counts and is never dropped. An entry that
another process reads at the moment stays readable for it: its name goes, its bytes when all have
closed it.
"""

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from . import boundary

KEY = "[0-9a-f]{16}"
NAME = re.compile(
    rf"((policy|answers|directions|scores)|(trie|reference|states)/{KEY})/({KEY}|\d+)\.safetensors"
)
DEFAULT, MOST = 20.0, 1e6  # GB, 1e9 bytes
FULL = 0.9  # share of the limit that is left after a clearing
_free = {}  # {folder: bytes that this process may write before it looks again}


@dataclass(frozen=True)
class Entry:
    """A file of the cache: path, kind, bytes, when it was used last (seconds since 1970).

    The kind is "partial" for the state of a training, which is no finished entry.
    """

    path: Path
    kind: str
    size: int
    used: float


def limit():
    """Bytes that `SAFEALIGN_CACHE_GB` allows, 20 GB by default. Raises ValueError, which names
    it."""
    given = os.environ.get("SAFEALIGN_CACHE_GB") or str(DEFAULT)
    with contextlib.suppress(ValueError):
        if 0 < float(given) <= MOST:
            return int(float(given) * 1e9)
    fix = f"a number of GB above 0, at most {MOST:g}; unset it for {DEFAULT:g}"
    raise boundary.Refusal(f"SAFEALIGN_CACHE_GB={boundary.shown(given)}: {fix}")


def entries(root):
    """The `Entry`s of a cache, the least recently used first. What has not the name of one is
    somebody else's, and no part of the cache."""
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            inside = os.path.relpath(os.path.join(folder, name), root)
            kind = inside.split(os.sep)[0]
            if kind == "partial" or NAME.fullmatch(inside.replace(os.sep, "/")):
                with contextlib.suppress(FileNotFoundError):
                    path = Path(folder, name)
                    stat = path.stat()
                    found.append(Entry(path, kind, stat.st_size, stat.st_mtime))
    return sorted(found, key=lambda entry: entry.used)


def use(path):
    """Say that an entry was used now; a cache that can only be read stays as it is."""
    with contextlib.suppress(OSError):
        os.utime(path)


def make(root, size):
    """Make room for `size` bytes that are to be written: False where they are more than the
    limit."""
    allowed = limit()
    if size > FULL * allowed:
        return False
    left = _free.get(str(root), 0) - size
    if left < 0:
        there = entries(root)
        total = sum(entry.size for entry in there) + size
        if total > allowed:
            total -= _drop(there, total - FULL * allowed)
        left = max(0, allowed - total) // 4
    _free[str(root)] = left
    return True


def _drop(there, wanted):
    """Remove entries, those first that come first, until `wanted` bytes are free: how many are."""
    freed = 0
    for entry in there:
        if freed < wanted and entry.kind != "partial":
            entry.path.unlink(missing_ok=True)
            freed += entry.size
    return freed
