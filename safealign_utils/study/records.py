"""Records: what a run asked, found and claims, written whole or not at all."""

import hashlib
import json
import math
import os
import platform
import re
import stat
import subprocess
import time
from functools import cache as once
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field, FiniteFloat, TypeAdapter
from typing_extensions import NotRequired, TypedDict  # pydantic's own; typing's is too old in 3.10

from ..engine import boundary, cache
from .settings import NOTEBOOKS, Refusal

SCHEMA = 1
COMMITTED = NOTEBOOKS / "tables"  # of sweeps that were run once
JUDGED_ON = {  # verdicts of `full`; no rule was written on the last seeds, they go before
    "verdicts_full.csv": "seeds 0 to 2",
    "verdicts_confirmed.csv": "seeds 5 to 12",
}
PARTS = "notebook run_id parameters metrics timings claims tables figures provenance".split()
PACKAGES = (
    "torch transformers datasets accelerate numpy scipy scikit-learn papermill matplotlib".split()
)
WORDS = ("holds", "does_not_hold", "undecided", "needs_scale", "not_measured")
RECENT = 2 * 10**9  # ns: a file changed so lately may change again within a tick of its clock


class _Verdict(TypedDict):
    id: str
    verdict: Literal[WORDS]
    value: FiniteFloat | None
    low: FiniteFloat | None
    high: FiniteFloat | None
    n: int


class _Provenance(TypedDict):
    code: NotRequired[str]
    git: NotRequired[str]


class _Record(TypedDict):
    """What `write` writes, as `read` takes it; names beside these are left alone."""

    schema: Annotated[int, Field(ge=SCHEMA, le=SCHEMA)]  # for a Literal True is 1
    status: Literal["complete"]
    notebook: str
    run_id: str
    parameters: dict[str, str | bool | int | float | None | list[Any]]
    metrics: dict[str, FiniteFloat]
    timings: dict[str, FiniteFloat]
    claims: list[_Verdict]
    tables: list[str]
    figures: list[str]
    provenance: _Provenance


_RECORD = TypeAdapter(_Record)


def run_id(notebook, settings, contents=()):
    """Hash of the question: cell sources, settings, package, libraries, the committed tables it
    reads.

    `contents` {parameter: hash} stands for the content of the files that settings name.
    """
    cells = [(cell["cell_type"], cell["source"]) for cell in boundary.read_cells(notebook)]
    asked = {name: value for name, value in settings.items() if name != "out_dir"}
    code = "".join(text for kind, text in cells if kind == "code")
    package = package_hash(cache.PACKAGE), cache.library_versions()
    return cache.digest(cells, asked | dict(contents), package, _committed(code))


def _committed(source):
    """The committed tables that a notebook reads, {name: bytes}; all where a call names none.

    A notebook with claims prints their committed verdicts.
    """
    names = set(JUDGED_ON) if "study.claim(" in source else set()
    for literal in re.findall(r"""\bcommitted\(\s*(?:["']([^"'\n]+)["']|[^\s"')])""", source):
        names |= {literal} if literal else {file.name for file in COMMITTED.glob("*.csv")}
    return {name: (COMMITTED / name).read_bytes() for name in names if (COMMITTED / name).is_file()}


def package_hash(folder):
    """Hash of what a copy of the package would do: its source, the ledger, the shipped weights
    and answers."""
    kinds, found = (".py", ".yaml", ".safetensors", ".jsonl"), []
    for here, _, names in os.walk(folder):
        found += [os.path.join(here, name) for name in names if name.endswith(kinds)]
    stats = [(name, os.stat(name)) for name in sorted(found)]
    return _read(folder, tuple((name, s.st_mtime_ns, s.st_size) for name, s in stats))


@once
def _read(folder, files):
    """Hash of files, read again only where one has changed: a sweep asks for every run."""
    return cache.digest([(os.path.relpath(n, folder), Path(n).read_bytes()) for n, *_ in files])


def content(name, kind="model", revision=""):
    """Hash of what a parameter names: files by content, a hub id by name and commit, else the name.

    `kind` is that of a hub id: a model is one path; data may be several as `name=path,name=path`.
    Of a folder the paths inside it count too, of data also the name that becomes the rows'
    `source`. Raises Refusal for a folder of more files than a model or a data set has.
    """
    from ..real import fetched, hub
    from ..real.sources import sources

    out = []
    named = sources(name) if kind == "dataset" else [("", fetched.place(str(name)))]
    for label, path in named:
        if Path(path).is_dir():
            parameter = "data" if kind == "dataset" else kind
            boundary.inside(path, f"{parameter}={boundary.shown(name)}")  # refuses a home or a root
            own = Path(path).resolve().stem if kind == "dataset" else ""
            files = [[inner, _content_hash(file)] for inner, file in _files(path)]
            out.append([label or own, files])
        elif Path(path).is_file():
            out.append([label, [Path(path).name, _content_hash(path)]])
        else:
            out.append([label, path, hub.commit(path, kind, revision)])
    return cache.digest(out)


def _files(folder, above=()):
    """(path inside the folder, path) of all its files, in order; links may run in a circle."""
    real, found = os.path.realpath(folder), []
    for entry in sorted(os.listdir(folder)) if real not in above else []:
        path = os.path.join(folder, entry)
        if os.path.isdir(path):
            found += [(f"{entry}/{inner}", file) for inner, file in _files(path, (*above, real))]
        elif os.path.isfile(path):
            found.append((entry, path))
    return found


def _content_hash(file):
    """Hash of a file's bytes, read again only where it may have changed.

    Time stamp and size stay where a file is written by `cp -p` or `rsync -t`; the inode's change
    time does not.
    """
    s = os.stat(file)
    read = _file_hash if time.time_ns() - s.st_ctime_ns > RECENT else _file_hash.__wrapped__
    return read(os.path.realpath(file), s.st_dev, s.st_ino, s.st_ctime_ns, s.st_mtime_ns, s.st_size)


@once
def _file_hash(file, *stat):
    """Hash of a file's bytes, read in parts (weights are large); `stat` tells its states apart."""
    h = hashlib.sha256()
    with open(file, "rb") as stream:
        while part := stream.read(2**24):
            h.update(part)
    return h.hexdigest()


def write(folder, **parts):
    """Write `record.json`, the last file of a run's folder, from its PARTS.

    Raises ValueError for a metric or a timing that is no finite number.
    """
    for kind in ("metrics", "timings"):
        for name, value in parts[kind].items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                raise ValueError(f"{kind}[{name!r}] = {value!r}: a record has finite numbers only")
    record = {"schema": SCHEMA, "status": "complete"} | {name: parts[name] for name in PARTS}
    text = json.dumps(record, indent=1, allow_nan=False)
    cache.write_whole(Path(folder) / "record.json", text + "\n")


def read(folder):
    """The record of a run's folder if it is complete, else None: an odd one, whatever is wrong with
    it, counts as absent."""
    try:
        record = boundary.read_json(Path(folder) / "record.json")
        _RECORD.validate_python(record, strict=True)
    except ValueError:
        return None
    files = [*record["tables"], *record["figures"]]
    return record if all(own_file(folder, file) for file in files) else None


def own_file(folder, name):
    """The path of a plain file that lies in a folder, or None: no way out of it by `..`, by a path
    from the root or by a link, and nothing that is no file (a device would never end)."""
    try:
        inside = os.path.join(os.path.realpath(folder), name)
        is_own = os.path.realpath(inside) == inside and not os.path.isabs(name)
        return Path(folder, name) if is_own and stat.S_ISREG(os.stat(inside).st_mode) else None
    except (OSError, TypeError, ValueError):
        return None


def provenance(*, device="cpu", data_hash, reference_hash, **more):
    """Where and with what a run was made; `more` is added."""
    import torch

    return {
        "code": cache.code_hash(),
        "git": git_commit(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "cpu": f"{processor()}; {torch.backends.cpu.get_cpu_capability()}",
        "device": device,
        "threads": torch.get_num_threads(),
        "data_hash": data_hash,
        "reference_hash": reference_hash,
        **more,
    }


def git_commit():
    """Commit of the package's checkout, `-dirty` where it was changed; "" outside one."""
    words = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    where = dict(cwd=cache.PACKAGE.parent, capture_output=True, text=True, timeout=20)
    try:
        commit = subprocess.run(words, **where)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return commit.stdout.strip() if commit.returncode == 0 else ""


def processor():
    """The processor's name, as far as the system says."""
    try:
        model = re.search(r"model name\s*:(.*)", Path("/proc/cpuinfo").read_text())
        return model[1].strip()
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def committed(name):
    """A committed table of a sweep that was run once. Raises Refusal outside of a clone."""
    if not (COMMITTED / name).is_file():
        fix = "run the notebook from a clone of the project"
        raise Refusal(f"table={name!r}: {COMMITTED} holds none; {fix}")
    return pd.read_csv(COMMITTED / name)


def committed_verdicts(bars):
    """{id with setting: verdict} of the committed runs of `full`, and on which seeds they stand.

    `bars` {id: the rule in words}: a verdict by another rule is left out. `verdict` is the one that
    stands after the correction for the number of claims. Empty outside of a clone.
    """
    out = {}
    for name in filter(lambda name: (COMMITTED / name).is_file(), JUDGED_ON):
        for row in pd.read_csv(COMMITTED / name).dropna(subset="low").to_dict("records"):
            id = row.get("claim") or row["id"]
            corrected = row.get("confirmed", row["verdict"])
            one = {k: row[k] for k in ("value", "low", "high")} | {"n": int(row["n"])}
            one["verdict"] = corrected if isinstance(corrected, str) else row["verdict"]
            if bars.get(id) == row["rule"]:
                at = "" if pd.isna(row["setting"]) else f"[{row['setting']}]"
                out[id + at] = one | {"seeds": JUDGED_ON[name]}
    return out
