"""The commands `run`, `reproduce` and `notebooks`."""

import shutil
import sys
import time
from pathlib import Path

from ..engine import distributed
from ..study import records
from ..study.settings import ONE_PIECE
from . import folders, pool, runner


def run(args):
    folder, record, ran = runner.run(args.notebook, args.given, args.files, out=args.out)
    if distributed.rank() == 0:
        _report(record, folder, ran)
    return 0


def reproduce(args):
    """Every notebook into `out/profile`, then the report; 1 where one failed.

    A notebook of several seeds is first asked seed by seed, which brings its trainings into the cache on all
    workers; its own run then finds them there. The last notebook comes first: it has the longest parts.
    """
    started, out = time.perf_counter(), Path(args.out).resolve() / args.profile
    folders.check_cache()
    folders.check_out(out)
    runner.remove_leftovers(out)
    parts, jobs, problems, busy = out / runner.hidden("parts", "partial"), [], {}, 0.0
    for path in reversed(runner.numbered()):
        jobs += _jobs(path, args.profile, out, parts)
    try:
        for outcome in pool.execute(jobs, workers=args.workers) if jobs else ():
            job, busy = outcome.job, busy + outcome.seconds
            if not job.name:
                how = outcome.error or f"{outcome.seconds:.0f} s"
                print(
                    f"  {Path(job.notebook).stem}, seed {dict(job.given)['seed']}: {how}",
                    flush=True,
                )
            elif outcome.record:
                _report(outcome.record, outcome.folder, outcome.ran)
            else:
                problems[job.name] = outcome.error
    finally:
        shutil.rmtree(parts, ignore_errors=True)
    for name, message in problems.items():
        print(f"failed: {name}\n  {message}", file=sys.stderr)
    if len(problems) == len(runner.numbered()):
        return 1
    if jobs or not (out / "report.html").is_file():
        from .report import write

        write(out)
    seconds = time.perf_counter() - started
    share = f", {busy / seconds:.2f} of {args.workers} workers busy" if jobs else ", all was there"
    print(f"reproduced in {seconds:.1f} s{share}\nopen {out / 'report.html'}")
    return 1 if problems else 0


def _jobs(path, profile, out, parts):
    """What is to be done for a notebook: nothing, or its seeds one by one (where there are several) and then all."""
    _, settings, id = runner.prepare(path, _given(profile))
    record = records.read(out / path.stem)
    if record and record["run_id"] == id:
        print(f"{path.stem}: already complete, not run again")
        return []
    seeds = range(settings["seed"], settings["seed"] + settings["seeds"])
    split = len(seeds) > 1 and path.stem not in ONE_PIECE
    before = [
        pool.Job(str(path), _given(profile, seed=s, seeds=1), str(parts)) for s in seeds if split
    ]
    return [
        *before,
        pool.Job(str(path), _given(profile), str(out), name=path.stem, after=tuple(before)),
    ]


def _given(profile, **more):
    return (("profile", profile), *((name, str(value)) for name, value in more.items()))


def notebooks(args):
    folders.check_cache()
    names = args.names or [
        *runner.numbered(),
        *sorted((runner.ROOT / "notebooks" / "solutions").glob("*.ipynb")),
    ]
    for path in map(runner.find, names):
        print(f"{path.name}: {'changed' if runner.regenerate(path) else 'unchanged'}", flush=True)
    return 0


def _report(record, folder, ran):
    if not ran:
        print(f"{record['notebook']}: already complete, not run again\n  {folder}")
        return
    seconds, memory = record["timings"]["total"], record["timings"]["peak_memory_bytes"] / 2**20
    print(f"{record['notebook']}: complete in {seconds:.0f} s, {memory:.0f} MB\n  {folder}")
    for claim in record["claims"]:
        value = "" if claim["value"] is None else f": {claim['value']:.4f} (n = {claim['n']})"
        print(f"  [{claim['verdict'].replace('_', ' ')}] {claim['id']}{value}", flush=True)
