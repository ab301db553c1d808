"""The command `doctor`: what a run needs, looked at one by one: [OK], or [FAIL] with the fix in words.

Every look is a function of no arguments that returns what it found, or raises `Ill` with what is wrong and the fix.
"""

import json
import os
import platform
import shutil
import sys
import threading
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path

from ..engine import cache
from . import folders

ROOT = cache.PACKAGE.parent
PYTHONS = (3, 10), (3, 13)
MEMORY, DISK = 1.5, 2.0  # GiB: for each worker, and for the cache and the results of everything
KERNEL_SECONDS, HUB_SECONDS = 60, 3
SEEDS = 5  # with a shipped reference policy
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class Ill(RuntimeError):
    """Something a run needs is missing: the message says what, and the fix."""


def doctor(args):
    bad = 0
    for name, look in LOOKS.items():
        try:
            mark, words = "[OK]  ", look()
        except Ill as error:
            mark, words, bad = "[FAIL]", str(error), bad + 1
        except (
            Exception
        ) as error:  # a look that breaks is a finding, and the others still have their turn
            mark, words, bad = (
                "[FAIL]",
                f"cannot be looked at ({type(error).__name__}: {error})",
                bad + 1,
            )
        print(f"{mark} {name:<10} {words}", flush=True)
    print("all is there" if not bad else f"{bad} of {len(LOOKS)} failed")
    return int(bad > 0)


def python():
    here = sys.version_info[:2]
    if not PYTHONS[0] <= here <= PYTHONS[1]:
        raise Ill(
            f"{platform.python_version()}; make the environment with Python 3.10 to 3.13: make PYTHON=python3.11"
        )
    return f"{platform.python_version()} in {sys.prefix}"


def requirements(path=None):
    """The direct requirements that hold on this machine, in the order of requirements.txt."""
    from packaging.requirements import Requirement

    path = path or ROOT / "requirements.txt"
    if not path.is_file():
        raise Ill(
            f"{path} is not there; install from a clone of the project: make reproduce PROFILE=small"
        )
    direct = path.read_text(encoding="utf-8").partition("# Transitive")[0].splitlines()
    wanted = [
        Requirement(line.partition("#")[0].strip())
        for line in direct
        if line.partition("#")[0].strip()
    ]
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
        raise Ill(f"{'; '.join(wrong)}; fix: .venv/bin/python -m pip install -r requirements.txt")
    return f"{len(wanted)} direct requirements as pinned"


def device():
    import torch

    if torch.cuda.is_available():
        return f"CUDA, {torch.cuda.get_device_name(0)} (torch {torch.__version__}); notebooks with device=auto use it"
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda and wanted not in (None, "", "-1"):
        raise Ill(
            f"CUDA_VISIBLE_DEVICES={wanted}, but torch sees no CUDA device; check the driver, or unset it"
        )
    return f"CPU, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores (torch {torch.__version__})"


def threads():
    import torch

    from .. import policy  # noqa: F401  sets the number of threads, as every run does

    asked = {
        name: os.environ[name] for name in ("SAFEALIGN_THREADS", *THREADS) if os.environ.get(name)
    }
    words = ", ".join(f"{name}={value}" for name, value in asked.items())
    number = torch.get_num_threads()
    if number > 1 and os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive":
        raise Ill(
            f"{number} per process ({words}): two such processes on two cores were ten times slower; "
            "unset SAFEALIGN_THREADS, or set OMP_WAIT_POLICY=passive too"
        )
    return f"{number} per process" + (
        f" ({words})" if words else "; no BLAS variable is set, none is needed"
    )


def _available():
    """Bytes of memory that are free for use."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")
        )
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # macOS: all there is


def memory():
    free = _available() / 2**30
    if free < MEMORY:
        raise Ill(f"{free:.1f} GiB free; one worker needs about {MEMORY} GiB: close what else runs")
    return f"{free:.1f} GiB free, enough for {int(free / MEMORY)} workers of {MEMORY} GiB"


def _folder_there(path):
    """The nearest folder of a path that exists, or can be seen."""
    return next(p for p in (path, *path.parents) if os.path.exists(p))


def disk():
    lines = []
    for name, path in (("cache", cache.root()), ("here", Path.cwd())):
        free = shutil.disk_usage(_folder_there(path.absolute())).free / 2**30
        if free < DISK:
            fix = (
                "set SAFEALIGN_CACHE to a larger disk"
                if name == "cache"
                else "give --out on a larger disk"
            )
            raise Ill(
                f"{free:.1f} GiB free at {path}; about {DISK:.0f} GiB are needed: make room, or {fix}"
            )
        lines.append(f"{free:.0f} GiB free ({name})")
    return ", ".join(lines)


def cache_folder():
    _can_write(folders.check_cache)
    root = cache.root()
    files = list(root.rglob("*.safetensors"))
    return f"{root} is writable; {len(files)} entries, {sum(f.stat().st_size for f in files) / 2**20:.0f} MiB"


def results():
    _can_write(folders.check_out, "results")
    return f"{Path('results').absolute()} is writable"


def _can_write(check, *folder):
    """A run's own look at a folder: what it refuses is Ill here, in the same words."""
    try:
        check(*folder)
    except ValueError as error:
        raise Ill(str(error)) from None


def kernel():
    """The kernelspec python3 starts, and is this Python: one of another environment would run other code."""
    from jupyter_client.kernelspec import NoSuchKernel
    from jupyter_client.manager import start_new_kernel

    fix = "run .venv/bin/python -m ipykernel install --sys-prefix --name python3"
    try:
        manager, client = start_new_kernel(
            KERNEL_SECONDS, "python3", extra_arguments=["--log-level=50"]
        )
    except NoSuchKernel:
        raise Ill(f"no kernelspec 'python3'; {fix}") from None
    except (RuntimeError, OSError) as error:
        raise Ill(f"python3 does not start ({error}); {fix}") from None
    try:
        said = []
        code = "import json, sys, safealign_utils as s; print(json.dumps([sys.prefix, s.__file__]))"
        hook = lambda message: said.append(message["content"].get("text", ""))
        reply = client.execute_interactive(
            code, silent=False, timeout=KERNEL_SECONDS, output_hook=hook
        )["content"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    if reply["status"] != "ok":
        raise Ill(f"python3 cannot import safealign_utils ({reply.get('evalue')}); {fix}")
    line = next(line for line in "".join(said).splitlines() if line.startswith("["))
    prefix, package = json.loads(line)
    if prefix != sys.prefix or Path(package).parent != cache.PACKAGE:
        raise Ill(f"python3 is another environment, {prefix} with {package}; {fix}")
    return "python3 starts, and is this environment"


def git():
    from ..study.records import git_commit

    commit = git_commit()
    return (
        f"commit {commit}"
        if commit
        else "no git checkout: records will name the hash of the code only"
    )


def hub():
    """Reachable or not: both are well, since the world needs no network."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "not asked (HF_HUB_OFFLINE is set): the world needs none; give local files"
    address, answer = os.environ.get("HF_ENDPOINT", "https://huggingface.co"), []
    asking = threading.Thread(
        target=lambda: answer.append(_answers(address)), daemon=True
    )  # name lookup has no limit
    asking.start()
    asking.join(HUB_SECONDS + 0.5)
    if answer and answer[0]:
        return f"{address} answers"
    return f"{address} not reachable: the world needs none; give local files"


def _answers(address):
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address, method="HEAD"), timeout=HUB_SECONDS
        ):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def policies():
    from safetensors import SafetensorError, safe_open

    folder = cache.PACKAGE / "world" / "reference_policies"
    for seed in range(SEEDS):
        file = folder / f"default_seed{seed}.safetensors"
        try:
            with safe_open(file, framework="numpy") as f:
                sizes = [f.get_tensor(name).size for name in f.keys()]
        except (SafetensorError, OSError):
            fix = "git checkout -- safealign_utils/reference_policies"
            raise Ill(
                f"{file.name} is missing or damaged; {fix}, or reinstall the package"
            ) from None
    return f"{SEEDS} shipped, seeds 0 to {SEEDS - 1}, {sum(sizes):,} weights each"


LOOKS = {
    "python": python,
    "packages": packages,
    "device": device,
    "threads": threads,
    "memory": memory,
    "disk": disk,
    "cache": cache_folder,
    "results": results,
    "kernel": kernel,
    "git": git,
    "hub": hub,
    "policies": policies,
}
