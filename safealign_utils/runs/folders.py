"""Folders that a run writes to, tried before a kernel starts. Nothing is left behind by a look."""

import os
import tempfile
from pathlib import Path

from ..engine import cache
from ..study.settings import Refusal

# what kernels write to, at home unless these are set
HOMES = ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR")
_instead = {}  # folders that stand in for those, gone at exit


def trouble(folder):
    """Why nothing can be written into a folder, which need not exist yet; "" where it can."""
    folder = Path(folder).absolute()
    there = next(p for p in (folder, *folder.parents) if os.path.lexists(p))
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(b"x")
    except OSError as error:
        return error.strerror
    return ""


def check_out(out):
    """Refuse a folder for results that cannot be written."""
    if why := trouble(out):
        raise Refusal(f"--out {out}: cannot be written ({why}); name another folder")


def check_cache():
    """Refuse a cache that cannot be written, or of which a part belongs to somebody else."""
    fix = "set SAFEALIGN_CACHE to a folder of yours"
    asked = f"SAFEALIGN_CACHE={os.environ.get('SAFEALIGN_CACHE', '')!r}"
    try:
        root = cache.root()
    except RuntimeError as error:
        raise Refusal(f"{asked}: no folder of the user is known ({error}); {fix}") from None
    if why := trouble(root):
        raise Refusal(f"{asked}: {root} cannot be written ({why}); {fix}")
    for part in root.glob("*/"):
        if not os.access(part, os.W_OK | os.X_OK):
            raise Refusal(f"{asked}: {part} cannot be written (it belongs to somebody else); {fix}")


def stand_in_for_home():
    """Where home cannot be written, let Jupyter, IPython and matplotlib use temporary folders."""
    if not _instead and trouble(os.path.expanduser("~")):
        for name in HOMES:
            if name not in os.environ:
                _instead[name] = tempfile.TemporaryDirectory(prefix="safealign.")
                os.environ[name] = _instead[name].name
