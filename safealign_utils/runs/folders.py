"""What a run needs of the machine, tried before a kernel starts: folders that it can write to, and
limits that leave it room. Nothing is left behind by a look."""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

with contextlib.suppress(ImportError):  # Windows has no such limits
    import resource

from ..engine import cache
from ..study.settings import Refusal

# what kernels write to, at home unless these are set
HOMES = ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR")
LIMITS = {  # of a process: {name: (what a run needs of it, the command that shows and sets it)}
    "RLIMIT_NOFILE": (256, "ulimit -n"),  # with fewer a kernel may wait for ever
    "RLIMIT_AS": (4 * 2**30, "ulimit -v"),  # addresses; torch and a kernel's threads take 3 GB
}
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
    """Refuse a cache that cannot be written, or of which a part belongs to somebody else; a machine
    without a temporary folder; limits, and a Python, under which no kernel runs."""
    _check_docstrings()
    _check_temporary()
    _check_limits()
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


def _check_temporary():
    try:
        tempfile.gettempdir()
    except OSError:
        asked, fix = f"TMPDIR={os.environ.get('TMPDIR', '')!r}", "set it to a folder of yours"
        raise Refusal(f"{asked}: no temporary folder can be written; {fix}") from None


def _check_docstrings():
    if sys.flags.optimize > 1:
        raise Refusal("python -OO: transformers reads its own docstrings; use -O, or leave it out")


def _check_limits():
    for name, (needed, command) in LIMITS.items() if "resource" in globals() else ():
        allowed = resource.getrlimit(getattr(resource, name))[0]
        if allowed != resource.RLIM_INFINITY and allowed < needed:
            unit = 1 if name == "RLIMIT_NOFILE" else 1024
            few = f"{command}: {allowed // unit} is too little for a kernel"
            raise Refusal(f"{few}; allow at least {needed // unit}: {command} {needed // unit}")


def stand_in_for_home():
    """Where home cannot be written, let Jupyter, IPython and matplotlib use temporary folders."""
    if not _instead and trouble(os.path.expanduser("~")):
        for name in HOMES:
            if name not in os.environ:
                _instead[name] = tempfile.TemporaryDirectory(prefix="safealign.")
                os.environ[name] = _instead[name].name
