"""Kill a sweep, and single runs, at random moments, again and again: nothing is lost or half-written.

    python tests/kill_sweep.py --kills 100
    python tests/kill_sweep.py --kills 100 --single

A sweep of toy runs is started; after a random time one process is killed with SIGKILL: the parent, a worker or
kernel below it, or the process that they are forked from; sometimes Ctrl-C or SIGTERM is sent to the parent. When
the parent is gone, the same command starts again. At every kill each folder in sight must be a complete record, and
no finished run may vanish. When the kills are used up the same command must finish with status 0, with every
run there, nothing else in the folder, and no process left. With `--single` it is one `safealign run` after another,
each repeated until it is finished.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import psutil
from helpers.toy import CELL, notebook

BODY = """import time
from pathlib import Path
from safealign_utils.study import records
time.sleep(PAUSE)
if out_dir:
    Path(out_dir, "table.csv").write_text("a,b\\n" + "1,2\\n" * 20000)
    time.sleep(PAUSE)
    records.write(out_dir, notebook="toy", run_id="", parameters={"seed": seed}, metrics={"toy.seed": seed}, claims=[],
                  timings={"total": 1.0, "peak_memory_bytes": 1}, tables=["table.csv"], figures=[], provenance={})"""


def whole(folder):
    """The finished runs in a sweep's folder; raises where something in sight is not whole."""
    runs = set()
    for path in Path(folder).glob("[!.]*"):
        if path.is_dir():
            record = json.loads((path / "record.json").read_text())
            assert record["status"] == "complete" and record["run_id"] == path.name, (
                f"{path}: {record}"
            )
            assert (
                len((path / "table.csv").read_text()) == 80004 and (path / "toy.ipynb").is_file()
            ), path
            nbformat.validate(nbformat.read(path / "toy.ipynb", as_version=4))
            runs.add(path.name)
        else:
            assert path.suffix in (".csv", ".parquet"), f"{path}: what is this?"
    return runs


def commands(folder, book, runs, single):
    """The command of the sweep, or one after another those of single runs."""
    start = [sys.executable, "-m", "safealign_utils.runs.cli"]
    out = ["--out", str(folder / "out")]
    if single:
        out = ["--out", str(folder / "out" / "grid")]
        yield from ([*start, "run", str(book), "-p", f"seed={n}", *out] for n in itertools.count())
    grid = folder / "grid.yaml"
    grid.write_text(f"notebook: {book}\nseeds: {runs}\n")
    yield [*start, "sweep", str(grid), *out]


def main(kills, runs, pause, seed, folder, single=False):
    rng = random.Random(seed)
    book = notebook(folder / "toy.ipynb", CELL, BODY.replace("PAUSE", str(pause)))
    place, seen, counts, starts = folder / "out" / "grid", set(), {}, 0
    family, log = {}, (folder / "log.txt").open("w")

    def note():
        for p in (me, *me.children(recursive=True)):
            family.setdefault(p.pid, p)

    todo, status = commands(folder, book, runs, single), 0
    while kills or status or single and len(seen) < runs or not starts:
        if single and not status or not starts:
            command = next(todo)
        parent = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
        me, starts = psutil.Process(parent.pid), starts + 1
        while parent.poll() is None:
            patient = rng.random() < 0.5  # until something new has been finished
            moment, before = (
                time.monotonic() + rng.uniform(0.05, 3.0),
                len(list(place.glob("[!.]*"))),
            )
            while parent.poll() is None and (
                time.monotonic() < moment or (patient and len(list(place.glob("[!.]*"))) == before)
            ):
                time.sleep(0.1)
                with contextlib.suppress(psutil.NoSuchProcess):
                    note()
            if parent.poll() is not None or not kills:
                continue
            kind = rng.choice(["parent", "below", "below", "below", "ctrl-c", "sigterm"])
            try:
                alive = [
                    p for p in me.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE
                ]
                if kind == "below" and not alive:
                    continue
                rng.choice(alive).kill() if kind == "below" else None
                os.killpg(
                    parent.pid, signal.SIGINT
                ) if kind == "ctrl-c" else None  # as a terminal does
                me.terminate() if kind == "sigterm" else None
                me.kill() if kind == "parent" else None
            except (psutil.NoSuchProcess, ProcessLookupError):
                continue
            counts[kind], kills = counts.get(kind, 0) + 1, kills - 1
            now = whole(place)
            assert seen <= now, f"lost: {seen - now}"
            seen = now
        status = parent.wait(timeout=300)
        now = whole(place)
        assert seen <= now, f"lost: {seen - now}"
        seen = now
        assert starts < 1000, "it does not finish"
    left = [p for p in family.values() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    gone, left = psutil.wait_procs(left, timeout=10)
    assert not left, f"processes left: {left}"
    hidden = [p.name for p in place.glob(".*")]
    assert (single or len(seen) == runs) and not hidden, (len(seen), hidden)
    print(
        f"{sum(counts.values())} kills ({counts}), {starts} starts: {len(seen)} runs of {max(runs, len(seen))},"
        " all whole, nothing else"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--pause", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--single", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        try:
            main(given.kills, given.runs, given.pause, given.seed, Path(name), given.single)
        except BaseException:
            print(Path(name, "log.txt").read_text()[-5000:], file=sys.stderr)
            raise
