"""Faults of a machine, one after another: what a run says, and what is lost.

    python tests/faults.py --write           the table notebooks/tables/faults.txt
    python tests/faults.py --write SIGTERM   these lines of it again

Each fault befalls `safealign run` of a toy notebook that stores an entry in the cache, saves a table and a record.
Afterwards the same command runs without the fault: it must end with status 0 and the record of an undisturbed run,
a run that was finished before must still be there, and nothing else may lie in the folders. `tests/runs/test_faults.py`
holds the table; a fault that needs mounts (`unshare`) or another user is skipped where these are not allowed.
"""

import argparse
import functools
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from helpers import ROOT
from helpers.toy import CELL, notebook

from safealign_utils.study import records

TABLE = ROOT / "notebooks" / "tables" / "faults.txt"
NOBODY = 65534
BODY = """import os, pathlib, time
import numpy as np
from safealign_utils.engine import cache
from safealign_utils.study import records
cache.store("scores", f"{seed:016x}", {"scores": np.arange(10**5) + seed})
if out_dir:
    pathlib.Path(out_dir, "table.csv").write_text("a,b\\n" + "1,2\\n" * 50000)
while pathlib.Path(os.environ.get("FAULTS_WAIT", "none")).exists():
    time.sleep(0.1)
if out_dir:
    found = cache.load("scores", f"{seed:016x}")
    records.write(out_dir, notebook="toy", run_id="", parameters={"seed": seed}, metrics={"toy.seed": seed}, claims=[],
                  timings={"total": 1.0, "peak_memory_bytes": 1}, tables=["table.csv"], figures=[], provenance={})"""


@dataclass(frozen=True)
class Fault:
    """What befalls the run: file systems mounted over folders {folder: options}, variables of the environment (None:
    unset), limits, Python's options, a shell command around it ("$@" is the run), a change of the folder before.

    `status` and `says` are what is expected of it.
    """

    name: str
    status: int
    says: str = ""
    mounts: dict = field(default_factory=dict)
    variables: dict = field(default_factory=dict)
    limits: dict = field(default_factory=dict)
    options: tuple = ()
    shell: str = 'exec "$@"'
    before: object = None
    after: object = None
    killed: bool = False


def dangling(name):
    return lambda folder: (shutil.rmtree(folder / name), (folder / name).symlink_to("gone"))


def looping(name):
    return lambda folder: (shutil.rmtree(folder / name), (folder / name).symlink_to(name))


def linked(name):
    return lambda folder: (folder / name).unlink()


def from_the_future(folder):
    """The clock stood ten years ahead when all of this was written."""
    later = time.time() + 10 * 365 * 86400
    for path in folder.rglob("*"):
        os.utime(path, (later, later))


def of_another_user(folder):
    for path in (folder / "cache", *(folder / "cache").rglob("*")):
        os.chown(path, NOBODY, NOBODY)


def partly_of_another_user(folder):
    os.chown(folder / "cache" / "scores", NOBODY, NOBODY)


def damaged_entry(folder):
    file = folder / "cache" / "scores" / f"{0:016x}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"no entry")


TMP = ("/tmp", "/var/tmp")
# root may write anywhere, unless it lets go of that
USER = 'exec setpriv --bounding-set=-dac_override,-dac_read_search,-fowner -- "$@"'
NONE = Fault("none", 0, "complete in")
FAULTS = [
    NONE,
    Fault("cache: full at once", 0, "complete in", mounts={"cache": "size=4k"}),
    Fault("cache: full in the middle of an entry", 0, "complete in", mounts={"cache": "size=200k"}),
    Fault("cache: no more files", 2, "SAFEALIGN_CACHE", mounts={"cache": "size=9m,nr_inodes=1"}),
    Fault("cache: read-only", 2, "SAFEALIGN_CACHE", mounts={"cache": "ro"}),
    Fault("cache: a damaged entry in its place", 0, "complete in", before=damaged_entry),
    Fault("cache: of another user", 2, "SAFEALIGN_CACHE", shell=USER, before=of_another_user),
    Fault(
        "cache: a part of another user",
        2,
        "somebody else",
        shell=USER,
        before=partly_of_another_user,
    ),
    Fault(
        "cache: a dangling link",
        2,
        "SAFEALIGN_CACHE",
        before=dangling("cache"),
        after=linked("cache"),
    ),
    Fault(
        "cache: a looping link",
        2,
        "SAFEALIGN_CACHE",
        before=looping("cache"),
        after=linked("cache"),
    ),
    Fault("results: full at the table", 1, "make room", mounts={"out": "size=40k"}),
    Fault("results: full at the notebook", 1, "make room", mounts={"out": "size=204k"}),
    Fault("results: no more files", 1, "make room", mounts={"out": "size=9m,nr_inodes=3"}),
    Fault("results: read-only", 2, "--out", mounts={"out": "ro"}),
    Fault("results: a dangling link", 2, "--out", before=dangling("out"), after=linked("out")),
    Fault("results: a looping link", 2, "--out", before=looping("out"), after=linked("out")),
    Fault("temporary folders: full", 0, "complete in", mounts={t: "size=4k" for t in TMP}),
    Fault(
        "temporary folders: read-only", 2, "TMPDIR", mounts={t: "ro" for t in TMP} | {"here": "ro"}
    ),
    Fault("TMPDIR: not there", 0, "complete in", variables={"TMPDIR": "/nowhere"}),
    Fault("HOME: not there", 0, "complete in", variables={"HOME": "/proc/nowhere"}),
    Fault("HOME: not set", 0, "complete in", variables={"HOME": None}),
    Fault("files of at most 100 kB (ulimit -f)", 1, "", limits={"FSIZE": 100_000}),
    Fault("30 open files (ulimit -n)", 2, "ulimit -n 256", limits={"NOFILE": 30}),
    Fault("256 open files (ulimit -n)", 0, "complete in", limits={"NOFILE": 256}),
    Fault("1 GB of addresses (ulimit -v)", 2, "ulimit -v 4194304", limits={"AS": 2**30}),
    Fault("4 GB of addresses (ulimit -v)", 0, "complete in", limits={"AS": 2**32}),
    Fault("the clock jumps back ten years", 0, "complete in", before=from_the_future),
    Fault("output closed (>&-)", 0, "", shell='exec "$@" >&-'),
    Fault("output and errors closed", 0, "", shell='exec "$@" >&- 2>&-'),
    Fault(
        "output not read (| head -c 0)", 141, "", shell='"$@" | head -c 0; exit ${PIPESTATUS[0]}'
    ),
    Fault(
        "output full (/dev/full)",
        1,
        "standard output cannot be written",
        shell='exec "$@" >/dev/full',
    ),
    Fault("errors full (2>/dev/full)", 0, "complete in", shell='exec "$@" 2>/dev/full'),
    Fault("SIGTERM", 143, "terminated", killed=True),
    Fault("python -O", 0, "complete in", options=("-O",)),
    Fault("python -OO", 2, "transformers reads its own docstrings", options=("-OO",)),
]


@functools.cache
def allowed(kind):
    """Whether this machine lets one mount in a namespace of one's own, or be another user."""
    if kind == "user":
        return os.getuid() == 0 and bool(shutil.which("setpriv"))
    words = [*_namespace(), "sh", "-c", "mount -t tmpfs -o size=4k none /mnt"]
    return (
        bool(shutil.which("unshare")) and not subprocess.run(words, capture_output=True).returncode
    )


def _namespace():
    return ["unshare", "--mount", *([] if os.getuid() == 0 else ["--user", "--map-root-user"])]


def lacking(fault):
    """Why a fault cannot be made here, "" where it can."""
    if fault.mounts and not allowed("mounts"):
        return "no mounts in a namespace of one's own here"
    return "another user needs root" if fault.shell == USER and not allowed("user") else ""


def start(folder):
    """A folder with a notebook, an empty cache and one finished run, which no fault may take away."""
    folder.chmod(0o755)
    for name in ("here", "out", "cache"):
        (folder / name).mkdir()
    notebook(folder / "toy.ipynb", CELL, BODY)
    _run(NONE, folder, seed=1)
    return folder


def happen(fault, folder):
    """(exit status, what was said, what was lost) of a run that a fault befalls, in a copy of what `start` made."""
    earlier = dict(_finished(folder))
    if fault.before:
        fault.before(folder)
    if fault.killed:
        (folder / "wait").touch()
    status, said = _run(fault, folder, seed=0)
    if fault.after:  # a link stood for the folder
        fault.after(folder)
        return status, said, []
    (folder / "wait").unlink(missing_ok=True)
    lost = [f"the run {id}" for id in earlier if id not in dict(_finished(folder))] + _left(folder)
    if status not in (0, 2):
        again, words = _run(NONE, folder, seed=0)
        lost += [f"it cannot be repeated: {words}"] if again else _left(folder)
    if status != 2 and len(dict(_finished(folder))) < 2:
        lost.append("the run")
    return status, said, lost


def _run(fault, folder, seed):
    own = {"SAFEALIGN_CACHE": str(folder / "cache"), "FAULTS_WAIT": str(folder / "wait")}
    environment = os.environ | own | fault.variables
    command = [sys.executable, *fault.options, "-m", "safealign_utils.runs.cli", "run"]
    command += [str(folder / "toy.ipynb"), "-p", f"seed={seed}", "--out", str(folder / "out")]
    mounts = [f"mount -t tmpfs -o {o} none {folder / where}" for where, o in fault.mounts.items()]
    script = "; ".join([*mounts, f"cd {folder / 'here'}", fault.shell])
    before = _namespace() if fault.mounts else []
    process = subprocess.Popen(
        [*before, "bash", "-c", script, "bash", *command],
        env={k: v for k, v in environment.items() if v is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if not fault.shell.startswith('"$@" |') else subprocess.PIPE,
        text=True,
        preexec_fn=functools.partial(_befall, fault),
    )
    if fault.killed:
        _terminate(process, folder)
    said, errors = process.communicate(timeout=300)
    return process.returncode, (said + (errors or "")).replace(str(folder), "").strip()


def _befall(fault):
    for name, value in fault.limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def _terminate(process, folder):
    """SIGTERM, when the run's table is there."""
    while not list((folder / "out").glob(".*/table.csv")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)


def _finished(folder):
    """(run id, record) of the finished runs."""
    for path in (folder / "out").glob("[!.]*/"):
        if record := records.read(path):
            yield record["run_id"], record


def _left(folder):
    """What lies in the folders and should not."""
    known = {id for id, _ in _finished(folder)}
    out = [p.name for p in (folder / "out").iterdir()]
    out = [n for n in out if n not in known and not n.endswith(".failed.ipynb")]
    cached = [p.name for p in (folder / "cache").rglob("*") if p.is_file()]
    cached = [n for n in cached if not n.endswith(".safetensors") or n.startswith(".")]
    return [f"left: {name}" for name in out + cached]


def table(folder, names=()):
    """A line a fault: status, what is said, what is lost."""
    first = start(Path(tempfile.mkdtemp(dir=folder)))
    for fault in FAULTS:
        if names and fault.name not in names:
            continue
        if why := lacking(fault):
            yield f"{fault.name}\n  not made: {why}"
            continue
        place = Path(shutil.copytree(first, folder / "place"))
        status, said, lost = happen(fault, place)
        shutil.rmtree(place)
        words = "\n  ".join(line[:200] for line in said.splitlines()) or "(nothing)"
        yield f"{fault.name}\n  status {status}; lost: {'; '.join(lost) or 'nothing'}\n  {words}"


def write(lines):
    """Put lines into the table, each in the place of its fault; the others stay as they are."""
    known, name = {}, ""
    for line in TABLE.read_text().splitlines()[1:] if TABLE.is_file() else ():
        name = name if line.startswith(" ") else line
        known.setdefault(name, []).append(line)
    known |= {line.partition("\n")[0]: [line] for line in lines}
    rows = ["\n".join(known.get(f.name, [f.name, "  not measured"])) for f in FAULTS]
    head = f"{len(rows)} faults, one run each, {time.strftime('%Y-%m-%d')}"
    TABLE.write_text("\n".join([head, *rows]) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    (ROOT / "results").mkdir(exist_ok=True)
    lines = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True, dir=ROOT / "results") as where:
        Path(where).chmod(0o755)
        for line in table(Path(where), given.names):
            print(line, flush=True)
            lines.append(line)
    if given.write:
        write(lines)
