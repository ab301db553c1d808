"""The command `doctor`: what a run needs, looked at one by one: [OK], or [FAIL] with the fix.

Every look returns what it found, or raises Refusal with what is wrong and the fix.
"""

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

from ..engine import cache as store
from ..study.settings import Refusal
from . import copies, engines, folders

REQUIREMENTS = store.PACKAGE.parent / "requirements.txt"
MEMORY, DISK = 1.5, 2.0  # GiB: for each worker, and for the cache and the results of everything
KERNEL_SECONDS = 60
SEEDS = 13  # with a shipped reference policy
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def doctor():
    """Print a line for every look; the exit status is 1 where one failed."""
    bad = 0
    for look in LOOKS:
        try:
            mark, words = "[OK]  ", look()
        except ValueError as error:
            mark, words = "[FAIL]", str(error)
        except Exception as error:  # a look that breaks is a finding, and the others still follow
            mark, words = "[FAIL]", f"cannot be looked at ({type(error).__name__}: {error})"
        bad += mark == "[FAIL]"
        print(f"{mark} {look.__name__:<10} {words}", flush=True)
    print("all is there" if not bad else f"{bad} of {len(LOOKS)} failed")
    return int(bad > 0)


def python():
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        fix = "make the environment with Python 3.10 to 3.13: make PYTHON=python3.11"
        raise Refusal(f"{platform.python_version()}; {fix}")
    return f"{platform.python_version()} in {sys.prefix}"


def requirements(path=REQUIREMENTS):
    """The direct requirements that hold on this machine, in the order of requirements.txt."""
    from packaging.requirements import Requirement

    if not path.is_file():
        fix = "install from a clone of the project: make reproduce PROFILE=small"
        raise Refusal(f"{path} is not there; {fix}")
    direct = path.read_text(encoding="utf-8").partition("# Transitive")[0]
    lines = [line.partition("#")[0].strip() for line in direct.splitlines()]
    wanted = [Requirement(line) for line in lines if line]
    return [one for one in wanted if one.marker is None or one.marker.evaluate()]


def packages():
    wrong, wanted = [], requirements()
    for one in wanted:
        try:
            found = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            found = "missing"
        if found == "missing" or not one.specifier.contains(found, prereleases=True):
            wrong.append(f"{one.name} {found}, pinned {one.specifier}")
    if wrong:
        raise Refusal(f"{'; '.join(wrong)}; .venv/bin/python -m pip install -r requirements.txt")
    return f"{len(wanted)} direct requirements as pinned"


def device():
    import torch

    version = f"(torch {torch.__version__})"
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        return f"CUDA, {name} {version}; notebooks with device=auto use it"
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda and wanted not in (None, "", "-1"):
        fix = "check the driver, or unset it"
        raise Refusal(f"CUDA_VISIBLE_DEVICES={wanted}, but torch sees no CUDA device; {fix}")
    return f"CPU, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores {version}"


def threads():
    import torch

    from ..engine.torch_setup import set_up

    set_up()  # as every run does
    names = [name for name in ("SAFEALIGN_THREADS", *THREADS) if os.environ.get(name)]
    words = ", ".join(f"{name}={os.environ[name]}" for name in names)
    number = torch.get_num_threads()
    if number > 1 and os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive":
        why = "two such processes on two cores were ten times slower"
        fix = "unset SAFEALIGN_THREADS, or set OMP_WAIT_POLICY=passive too"
        raise Refusal(f"{number} per process ({words}): {why}; {fix}")
    none = "; no BLAS variable is set, none is needed"
    return f"{number} per process" + (f" ({words})" if words else none)


def memory():
    import psutil

    free = psutil.virtual_memory().available / 2**30
    if free < MEMORY:
        raise Refusal(f"{free:.1f} GiB free; a worker needs {MEMORY} GiB: close what else runs")
    return f"{free:.1f} GiB free, enough for {int(free / MEMORY)} workers of {MEMORY} GiB"


def disk():
    lines = []
    for name, path, fix in (
        ("cache", store.root(), "set SAFEALIGN_CACHE to a larger disk"),
        ("here", Path.cwd(), "give --out on a larger disk"),
    ):
        path = path.absolute()
        there = next(p for p in (path, *path.parents) if os.path.exists(p))
        free = shutil.disk_usage(there).free / 2**30
        if free < DISK:
            need = f"about {DISK:.0f} GiB are needed: make room, or {fix}"
            raise Refusal(f"{free:.1f} GiB free at {path}; {need}")
        lines.append(f"{free:.0f} GiB free ({name})")
    return ", ".join(lines)


def cache():
    folders.check_cache()
    sizes = [file.stat().st_size for file in store.root().rglob("*.safetensors")]
    return f"{store.root()} is writable; {len(sizes)} entries, {sum(sizes) / 2**20:.0f} MiB"


def results():
    folders.check_out("results")
    return f"{Path('results').absolute()} is writable"


def kernel():
    """The kernel python3 starts, and passes the same check as that of a run."""
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient import NotebookClient
    from nbformat.v4 import new_notebook

    fix = "run .venv/bin/python -m ipykernel install --sys-prefix --name python3"
    how = dict(kernel_name="python3", startup_timeout=KERNEL_SECONDS, **engines.KERNEL)
    client = NotebookClient(new_notebook(), **how)
    try:
        with client.setup_kernel():
            copies.check(client)
    except NoSuchKernel:
        raise Refusal(f"no kernelspec 'python3'; {fix}") from None
    except (RuntimeError, OSError) as error:
        raise Refusal(f"python3 does not start ({error}); {fix}") from None
    except Refusal as error:
        raise Refusal(f"{error}; if that is another environment, {fix}") from None
    return "python3 starts, and imports this copy of the package"


def git():
    from ..study.records import git_commit

    commit = git_commit()
    without = "no git checkout: records will name the hash of the code only"
    return f"commit {commit}" if commit else without


def hub():
    """In reach or not: both are well, since the world needs no network."""
    from ..real.hub import unreachable

    why = unreachable()
    return f"{why}: the world needs none; give local files" if why else "answers"


def policies():
    from safetensors import SafetensorError, safe_open

    folder = store.PACKAGE / "world" / "reference_policies"
    for seed in range(SEEDS):
        file = folder / f"default_seed{seed}.safetensors"
        try:
            with safe_open(file, framework="numpy") as f:
                weights = sum(f.get_tensor(name).size for name in f.keys())
        except (SafetensorError, OSError):
            fix = "git checkout -- safealign_utils/world/reference_policies"
            words = f"{file.name} is missing or damaged; {fix}, or reinstall the package"
            raise Refusal(words) from None
    return f"{SEEDS} shipped, seeds 0 to {SEEDS - 1}, {weights:,} weights each"


LOOKS = [python, packages, device, threads, memory, disk, cache, results, kernel, git, hub]
LOOKS += [policies]
