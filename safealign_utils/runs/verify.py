"""The command `verify`: run again from an empty cache and compare with the committed reference values.

What is compared: the ledger; cells, settings, claims, metrics and every table cell of each notebook; the finished
runs in `--results`, with the bytes of their figures; the committed tables of larger sweeps. Outputs inside the
committed notebooks are nbval's (`make test`).
"""

import os
import tempfile
import time
from collections import Counter
from pathlib import Path

from ..study import records
from ..study.records import COMMITTED
from ..study.settings import Refusal
from . import pool, reference, runner
from .reference import KINDS, Broken, Finding

REFERENCE = runner.ROOT / "tests" / "reference"
MACHINE = ("cpu", "device", "threads", "packages")
MARKS = {True: "[PASS]", False: "[FAIL]", None: "[SKIP]"}


def verify(args):
    return check(args.notebooks, profile=args.profile, workers=args.workers, results=args.results)


def check(
    names=(),
    *,
    profile="small",
    workers=2,
    results="results",
    expected=REFERENCE,
    committed=COMMITTED,
    say=print,
):
    """Exit status: 0 where everything is as expected, else 1. Raises Refusal where there are no reference values.

    `names` are notebooks (names or files; all without any); `expected`, `results` and `committed` are the folders of
    reference values, of finished runs and of committed tables.
    """
    started, folder, results = time.perf_counter(), Path(expected) / profile, Path(results)
    paths = [runner.find(name) for name in names] or runner.numbered()
    missing = [path.stem for path in paths if not (folder / path.stem / "expected.json").is_file()]
    if missing:
        fix = f"python tests/reference_values.py --profile {profile} {' '.join(missing)}"
        raise Refusal(
            f"--profile {profile}: no reference values for {', '.join(missing)}; make them with {fix}"
        )
    found = []
    say(machine())

    def show(findings, seconds=None):
        for finding in _named(findings):
            found.append(finding)
            say(line(finding, seconds))
            seconds = None

    show(reference.compare_ledger(Path(expected) / "ledger.json"))
    if not names:
        gone = sorted(
            {f.name for f in folder.iterdir() if f.is_dir()} - {path.stem for path in paths}
        )
        show(Finding(False, name, "notebook", "a notebook", "none", kind="file") for name in gone)
    with tempfile.TemporaryDirectory() as temporary:
        for outcome in rerun(paths, profile, Path(temporary), workers):
            name = Path(outcome.job.notebook).stem
            if outcome.error:
                failed = Finding(
                    False, name, "run", "a complete record", outcome.error, kind="cell"
                )
                show([failed], outcome.seconds)
                continue
            show([Finding(True, name, "run again from an empty cache")], outcome.seconds)
            show(_as_expected(name, folder / name, outcome))
            show(_finished(results / profile / name, outcome.folder, _wider(folder / name)))
    show(reference.compare_committed(committed))
    for other in sorted({"small", "full"} - {profile}):
        if any((results / other).glob("*/record.json")):
            say(
                f"[SKIP] {results / other}: not compared; `safealign verify --profile {other}` is for them"
            )
    failed = [finding for finding in found if finding.passed is False]
    skipped = sum(finding.passed is None for finding in found)
    for finding in failed:
        say(line(finding))
    count, more = (
        len(found) - skipped,
        f", {skipped} skipped: results of another question" if skipped else "",
    )
    kinds = Counter(finding.kind for finding in failed)
    kinds = ", ".join(
        f"{kinds[kind]} {kind}{'s' if kinds[kind] > 1 else ''}" for kind in KINDS if kinds[kind]
    )
    kinds = f" ({kinds})" if kinds else ""
    seconds = time.perf_counter() - started
    say(
        f"{count - len(failed)} of {count} passed, {len(failed)} failed{kinds}{more}; {seconds:.0f} s"
    )
    return int(bool(failed))


def machine():
    """Processor, instruction set, threads and versions, in one line: what the digits were computed
    with."""
    made = records.provenance(data_hash="", reference_hash="")
    threads = os.environ.get("SAFEALIGN_THREADS", "1")
    versions = ", ".join(f"{name} {version}" for name, version in made["packages"].items())
    plural = "" if threads == "1" else "s"
    return (
        f"{made['cpu']}; {threads} thread{plural} a notebook; Python {made['python']}, {versions}"
    )


def line(finding, seconds=None):
    """[PASS] where: what; expected, got, tolerance, seconds. A failure says its kind first."""
    kind = f" {finding.kind}:" if finding.passed is False else ""
    parts = [f"{MARKS[finding.passed]}{kind} {finding.where}: {finding.what}"]
    parts += (
        [f"expected {finding.expected}, got {finding.got}"]
        if finding.expected or finding.got
        else []
    )
    parts += [f"tolerance {finding.tolerance}"] if finding.tolerance else []
    parts += [f"{seconds:.1f} s"] if seconds is not None else []
    return "; ".join(parts)


def rerun(paths, profile, out, workers=2):
    """Run notebooks from an empty cache below the folder `out`; yields an Outcome for each as it ends."""
    jobs = [
        pool.Job(str(path), (("profile", profile),), out=str(out / profile), name=path.stem)
        for path in paths
    ]
    before = os.environ.get("SAFEALIGN_CACHE")
    os.environ["SAFEALIGN_CACHE"] = str(out / "cache")
    try:
        yield from pool.execute(jobs, workers=workers, say=lambda _: None)
    finally:
        os.environ.pop("SAFEALIGN_CACHE")
        os.environ.update({"SAFEALIGN_CACHE": before} if before is not None else {})


def _named(findings):
    """The findings; a file that cannot be read ends them with one that names it."""
    try:
        yield from findings
    except Broken as error:
        yield Finding(False, *str(error).split(": ", 1), kind="file")


def _as_expected(name, kept, outcome):
    """Findings on a fresh run against the reference values in the folder `kept`."""
    expected = reference.read(kept)
    yield from reference.compare_cells(name, expected["cells"], outcome.job.notebook)
    how = dict(exact=_is_exact(reference.read(outcome.folder)), wider=expected["wider"])
    yield from reference.compare(
        name, *(reference.values(x, **how) for x in (kept, outcome.folder))
    )


def _wider(kept):
    """The wider tolerances of reference values; none where they cannot be read, which is said
    elsewhere."""
    try:
        return reference.read(kept)["wider"]
    except Broken:
        return {}


def _finished(folder, fresh, wider):
    """Findings on a finished run's files against the fresh run's; a run of another question is skipped."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    now, got = reference.read(fresh), reference.read(folder)
    if got["run_id"] != now["run_id"]:
        words = f"another question (run id {got['run_id']}, now {now['run_id']}); not compared"
        yield Finding(None, str(folder), words)
        return
    how = dict(exact=_is_exact(now, got), same=_is_same_machine(now, got), wider=wider)
    yield from reference.compare(
        str(folder), *(reference.values(x, **how) for x in (fresh, folder))
    )


def _is_same_machine(one, two):
    return all(one["provenance"].get(name) == two["provenance"].get(name) for name in MACHINE)


def _is_exact(run, other=None):
    """Whether digits can be compared: in float64 always; in float32 between two runs on the same CPU."""
    on_cpu = (
        other is not None
        and run["provenance"].get("device") == "cpu"
        and _is_same_machine(run, other)
    )
    return run["parameters"].get("dtype") == "float64" or on_cpu
