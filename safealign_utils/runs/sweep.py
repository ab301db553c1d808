"""Grids of parameters: a file is a pure function to a list of runs; what is finished is never run
again.

notebook: 02_safedpo                    # or several, [02_safedpo, 03_...]: each gets every setting
fixed: {profile: full, steps: 200}      # the same in every run
cross: {delta: [0, 5], beta: [0.5, 1]}  # every combination
zip:   {pairs: [500, 6000], batch_size: [16, 32]}  # go together
seeds: 3                                # 0, 1, 2, or a list: one run each; else the profile's
table: differences                      # a table of the notebook to gather as well, or several
"""

import contextlib
import itertools
import json
import math
import os
import re
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..engine import boundary, live
from ..engine.boundary import Refusal, shown
from ..real.sources import absolute
from ..study import records, strict_yaml
from ..study.settings import OWN, PATHS, check_once, nearest
from . import folders, pool, runner

KINDS = (".csv", ".parquet")  # of a table
PARTS = ("fixed", "cross", "zip")
KEYS = ("notebook", *PARTS, "seeds", "table")
MOST = 100_000  # runs of a grid


@dataclass(frozen=True)
class Run:
    """One run of a grid: the notebook, every given parameter, and those that vary."""

    notebook: str
    given: dict
    varied: dict

    def __str__(self):
        return " ".join([self.notebook, *(f"{k}={_text(v)}" for k, v in self.varied.items())])

    @property
    def texts(self):
        return tuple((name, _text(value)) for name, value in self.given.items())

    def command(self, out):
        """What repeats it."""
        given = [word for k, v in self.texts for word in ("-p", f"{k}={v}")]
        return shlex.join(["safealign", "run", self.notebook, *given, "--out", str(out)])


def _text(value):
    """A value as `-p` takes it."""
    return value if isinstance(value, str) else json.dumps(value)


# ---------------------------------------------------------------- the grid
def read(file):
    """The grid of a YAML file, checked. Raises Refusal with the key, what it holds and the fix."""
    try:
        grid = strict_yaml.read(file)
    except ValueError as error:
        raise Refusal(f"grid file {error}") from None
    with boundary.reading(f"grid file {file}", "see safealign sweep --help"):
        try:
            return _checked(grid)
        except ValueError as error:
            raise Refusal(f"grid file {file}: {error}") from None


def _checked(grid):
    if not isinstance(grid, dict) or not grid.get("notebook"):
        raise ValueError("names no notebook; write `notebook: 02_safedpo`")
    if unknown := [key for key in grid if key not in KEYS]:
        raise ValueError(f"unknown key {shown(unknown[0])}; {nearest(unknown[0], KEYS)}")
    parts = {key: _part(key, grid.get(key) or {}) for key in PARTS}
    names = [name for part in parts.values() for name in part]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]} is given twice; name it under one of {', '.join(PARTS)}")
    lengths = {name: len(values) for name, values in parts["zip"].items()}
    if len(set(lengths.values())) > 1:
        words = f"the lists of zip must be of one length, are {shown(lengths)}"
        raise ValueError(f"{words}; or use cross")
    several = {key: _listed(key, grid.get(key)) for key in ("notebook", "table")}
    checked = parts | several | {"seeds": _seeds(grid.get("seeds"), names)}
    _check_size(checked)
    return checked


def _check_size(grid):
    """Refuse more runs than anybody means, before they are listed."""
    sizes = {name: len(values) for name, values in grid["cross"].items()}
    sizes |= {"zip": len(next(iter(grid["zip"].values()), [0]))}
    sizes |= {"notebook": len(grid["notebook"]), "seeds": len(grid["seeds"] or [0])}
    count = math.prod(sizes.values())
    if count > MOST:
        number = f"{count:,}" if count < 10**12 else "more than 1,000,000,000,000"
        largest = max(sizes, key=sizes.get)
        fix = f"shorten {shown(largest)[1:-1]} ({sizes[largest]:,}), or split the file"
        raise ValueError(f"asks for {number} runs, at most {MOST:,} are taken; {fix}")


def _part(key, part):
    if not isinstance(part, dict):
        raise ValueError(f"{key}={shown(part)} must hold `name: value`")
    for name, values in part.items():
        if key != "fixed" and not (isinstance(values, list) and values):
            fix = "put one value in `fixed`"
            raise ValueError(f"{key}.{name}={shown(values)} must be a list of values; {fix}")
        for value in [values] if key == "fixed" else values:
            if not _is_plain(value):
                raise ValueError(f"{name}={shown(value)} is no text, number or list; quote texts")
    return part


def _is_plain(value):
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, (str, bool, int, float))


def _seeds(given, names):
    if given is None:
        return None
    if clash := {"seed", "seeds"} & set(names):
        raise ValueError(f"{clash.pop()} and `seeds:` both choose seeds; keep one")
    words = f"must be a number above 0, at most {MOST}, or a list of seeds"
    if type(given) is int and given > MOST:
        raise ValueError(f"seeds={shown(given)} {words}")
    seeds = list(range(given)) if type(given) is int else given
    if not isinstance(seeds, list) or not seeds or any(type(s) is not int or s < 0 for s in seeds):
        raise ValueError(f"seeds={shown(given)} {words}")
    return seeds


def _listed(key, value):
    found = value if isinstance(value, list) else [value] if value else []
    if not all(isinstance(name, str) and name for name in found):
        raise ValueError(f"{key}={shown(value)} must be a name, or a list of names")
    return found


def fix(grid, given):
    """The grid with (name, text) of parameters among what is fixed. Raises Refusal where the grid
    varies one."""
    check_once(given)
    for name, text in given:
        varied = [*grid["cross"], *grid["zip"], *(["seed", "seeds"] if grid["seeds"] else [])]
        if name in varied:
            raise Refusal(f"{name}={shown(text)}: the grid file varies {name}; change it there")
    return grid | {"fixed": grid["fixed"] | dict(given)}


def settings(grid):
    """The settings of a grid, seeds aside: [{name: value}], the last of `cross` running fastest."""
    zipped, crossed = grid["zip"], grid["cross"]
    together = [*zip(*zipped.values())] or [()]
    combined = itertools.product(together, *crossed.values())
    return [dict(zip([*zipped, *crossed], [*values, *more])) for values, *more in combined]


def runs(grid):
    """Every run of a grid, in order: notebooks, settings, seeds."""
    seeds = [{}] if grid["seeds"] is None else [{"seed": s} for s in grid["seeds"]]
    one = {} if grid["seeds"] is None else {"seeds": 1}
    parts = itertools.product(grid["notebook"], settings(grid), seeds)
    return [
        Run(str(notebook), grid["fixed"] | setting | seed | one, setting | seed)
        for notebook, setting, seed in parts
    ]


# ---------------------------------------------------------------- the command
def sweep(file, given=(), *, out, workers=2, scheduler="", dry_run=False, retry=False):
    """Check every run, execute what is not finished, gather the tables; 1 where a run failed.

    `given` are (name, text) of parameters that every run gets as well, such as where data are.
    """
    grid, out = fix(read(file), given), Path(os.path.realpath(out)) / Path(file).stem
    before = _grid_of(out, file)
    if not dry_run:
        folders.check_cache()
        folders.check_out(out)
    with _named(file, given):
        asked = _asked(grid)
    done, failed = _ended(asked, out)
    if dry_run:
        for id, run in asked.items():
            state = "done" if id in done else "failed" if id in failed else "to do"
            print(f"{state:<7}{id}  {run}")
    print(_counts(grid, asked, done, failed))
    if dry_run:
        return 0
    runner.remove_leftovers(out)
    if before is None:
        _take(out, file)
    problems = {} if retry else failed
    todo = {id: run for id, run in asked.items() if id not in done and id not in problems}
    if todo:
        problems = problems | _execute(todo, out, workers, scheduler)
    finished, _ = _ended(asked, out)
    paths = gather(finished, out, grid["table"]) if finished else []
    for old in (out / f"{name}{kind}" for name in ("table", *(before or ())) for kind in KINDS):
        if old not in paths:  # of runs that are no longer asked for
            old.unlink(missing_ok=True)
    _remember(out, file)
    print(*paths, sep="\n", end="\n" * bool(paths))
    _list_problems(problems, asked, out)
    return int(bool(problems))


@contextlib.contextmanager
def _named(file, given):
    """A refused value is called by the grid file that holds it, but those of the command line."""
    try:
        yield
    except Refusal as error:
        of_command = any(str(error).startswith(f"{name}=") for name, _ in given)
        raise error if of_command else Refusal(f"grid file {file}: {error}") from None


def _asked(grid):
    """{run_id: Run} of a grid, each run and table checked; runs that are the same stand once."""
    asked = {}
    for run in runs(grid):
        path, _, id = runner.prepare(run.notebook, run.texts)
        _check_tables(grid["table"], path)
        asked.setdefault(id, run)
    return asked


def _ended(asked, out):
    """Runs in a folder: those that are finished {run_id: Run}, and failed {run_id: message}."""
    done = {id: run for id, run in asked.items() if records.read(out / id)}
    failed = {id: runner.failure(out, id) for id in asked if id not in done}
    return done, {id: message for id, message in failed.items() if message}


def _counts(grid, asked, done, failed):
    """`2 settings x 3 seeds = 6 runs: 1 done, 0 failed, 5 to do`."""
    asks = _many(len(settings(grid)) * len(grid["notebook"]), "setting")
    seeds = f" x {_many(len(grid['seeds']), 'seed')}" if grid["seeds"] else ""
    twice = len(runs(grid)) - len(asked)
    same = f" ({twice} of them the same as another)" if twice else ""
    states = f"{len(done)} done, {len(failed)} failed, {len(asked) - len(done) - len(failed)} to do"
    return f"{asks}{seeds} = {_many(len(asked) + twice, 'run')}{same}: {states}"


def _list_problems(problems, asked, out):
    """Print each failed run, its error and the command that repeats it to stderr."""
    short = os.path.relpath(out) if out.is_relative_to(Path.cwd()) else out
    for id, message in problems.items():
        words = f"\nfailed: {asked[id]}\n  {message}\n  again: {asked[id].command(short)}"
        print(words, file=sys.stderr)
    if problems:
        words = "runs failed; --retry repeats them, and only them"
        print(f"\n{len(problems)} of {len(asked)} {words}", file=sys.stderr)


# ---------------------------------------------------------------- whose folder it is
def _memory(out):
    """The file beside a sweep's folder that says whose it is: path of the grid, then the grid."""
    return out.with_name(f"{out.name}.grid.yaml")


def _remember(out, file, put=os.replace):
    """Write down which grid a sweep's folder is of, by a relative path: both may move together."""
    path = os.path.relpath(Path(file).resolve(), out.parent)
    text = f"# {json.dumps(path)}\n{Path(file).read_text(encoding='utf-8')}"
    with live.whole(_memory(out), put) as beside:
        beside.write_text(text, encoding="utf-8")


def _take(out, file):
    """Make a folder that is nobody's this grid's. Of two that start at once one is refused."""
    try:
        _remember(out, file, put=os.link)  # which replaces nothing
    except FileExistsError:
        _grid_of(out, file)
    except OSError:  # a file system without links
        _remember(out, file)


def _grid_of(out, file):
    """The tables that the grid of the folder names so far, None where it is nobody's.

    The same file may have been edited, or moved. Raises Refusal for another file of its name with
    other content.
    """
    memory = _memory(out)
    if not memory.is_file():
        return None
    try:
        first, _, text = boundary.read_text(memory).partition("\n")
        owner = (out.parent / json.loads(first.lstrip("# "))).resolve()
        tables, own = read(memory)["table"], boundary.read_text(file)
    except (ValueError, TypeError, RecursionError, OSError):
        fix = f"remove it, and {out} is taken for the folder of {file}"
        raise Refusal(f"{memory}: is damaged; {fix}") from None
    if owner != Path(file).resolve() and text != own:
        if owner.is_file():
            why = f"{out} holds the runs of {owner}, another grid of this name"
            raise Refusal(f"grid file {file}: {why}; rename one, or give --out another folder")
        words = f"{out} held the runs of {owner}, which is gone; it goes on with {file}"
        print(words, file=sys.stderr)
    return tables


def _check_tables(names, notebook):
    """Refuse a table that the notebook does not save."""
    source = "".join(cell["source"] for cell in boundary.read_cells(notebook))
    for name in names:
        if name == "table" or f'"{name}"' not in source:
            known = ", ".join(dict.fromkeys(re.findall(r'study\.table\("(\w+)"', source)))
            words = f"{notebook.stem} saves no table of that name; it has {known or 'none'}"
            raise Refusal(f"table={shown(name)}: {words}")


def _many(n, word):
    return f"{n} {word}{'s' * (n != 1)}"


def _execute(todo, out, workers, scheduler):
    """Run what is left; {run_id: message} of what failed. Prints progress as runs end."""
    jobs = {
        pool.Job(str(runner.find(r.notebook)), _absolute(r.texts), str(out), name=id, id=id): id
        for id, r in todo.items()
    }
    started, problems = time.monotonic(), {}
    outcomes = pool.execute(list(jobs), workers=workers, scheduler=scheduler)
    for n, outcome in enumerate(outcomes, 1):
        id = jobs[outcome.job]
        if outcome.error:
            problems[id] = outcome.error
        left = (time.monotonic() - started) / n * (len(jobs) - n)
        line = f"{n}/{len(jobs)} runs, {len(problems)} failed, about {_clock(left)} left"
        if sys.stderr.isatty():
            print(f"\r{line}\033[K", end="" if n < len(jobs) else "\n", file=sys.stderr, flush=True)
        else:
            how = "failed" if outcome.error else f"{outcome.seconds:.0f} s"
            print(f"{line}: {todo[id]}: {how}", flush=True)
    return problems


def _absolute(texts):
    """Files that parameters name, by their full paths: a worker may stand in another folder."""
    own = {name: ("", *OWN.get(name, ())) for name in PATHS}
    named = {name for name, text in texts if name in PATHS and text not in own[name]}
    return tuple((name, absolute(text, name) if name in named else text) for name, text in texts)


def _clock(seconds):
    for unit, word in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.{int(unit == 3600)}f} {word}"
    return f"{seconds:.0f} s"


# ---------------------------------------------------------------- the tables
def gather(finished, out, tables=()):
    """Write the runs' metrics as a table, CSV and parquet, and the notebook's own `tables`; the
    paths.

    `table.csv` has a row for every run and method: run_id, notebook, what was varied, method, and a
    column for every quantity: `safedpo[delta=5].unsafe` is `unsafe` of the method
    `safedpo[delta=5]`. A quantity with the name of something varied becomes `measured_<name>`; in
    the notebook's own tables what was varied becomes `swept_<name>`.
    """
    rows, own = [], {}
    for id, run in finished.items():
        record = records.read(out / id)
        given = {name: record["parameters"].get(name, value) for name, value in run.varied.items()}
        texts = {k: json.dumps(v) if isinstance(v, list) else v for k, v in given.items()}
        head = {"run_id": id, "notebook": run.notebook} | texts
        rows += _by_method(record["metrics"], head)
        for name in tables:
            if (out / id / f"{name}.csv").is_file():
                part = pd.read_csv(out / id / f"{name}.csv")
                swept = {f"swept_{k}" if k in part else k: [v] * len(part) for k, v in head.items()}
                own.setdefault(name, []).append(pd.concat([pd.DataFrame(swept), part], axis=1))
    paths = _write(pd.DataFrame(rows), out / "table")
    for name, parts in own.items():
        paths += _write(pd.concat(parts, ignore_index=True), out / name)
    return paths


def _by_method(metrics, head):
    """A row for each method of a run: what `head` says of the run, the method, its quantities."""
    rows = {}
    for name, value in metrics.items():
        method, _, quantity = name.rpartition(".")
        row = rows.setdefault(method, {**head, "method": method})
        taken = quantity in head or quantity == "method"
        row[f"measured_{quantity}" if taken else quantity] = value
    return rows.values()


def _write(frame, target):
    """A table as CSV and parquet, each whole or not at all; the paths."""
    paths = [target.with_name(target.name + kind) for kind in KINDS]
    for path, write in zip(paths, (frame.to_csv, frame.to_parquet)):
        with live.whole(path) as beside, open(beside, "wb") as file:  # a path may be an address
            write(file, index=False)
    return paths
