"""Grids of parameters: a file is a pure function to a list of runs; what is finished is never run again.

notebook: 02_safedpo                    # or several, [02_safedpo, 03_...]: each gets every setting
fixed: {profile: full, steps: 200}      # the same in every run
cross: {delta: [0, 5], beta: [0.5, 1]}  # every combination
zip:   {pairs: [500, 6000], batch_size: [16, 32]}  # go together
seeds: 3                                # 0, 1, 2, or a list: one run each; without it, the profile's in one run
table: differences                      # a table of the notebook to gather as well, or several
"""

import itertools
import json
import os
import re
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ..engine.cache import write_whole
from ..real.sources import absolute
from ..study import records, strict_yaml
from ..study.settings import PATHS, Refusal, nearest
from . import folders, runner

KINDS = (".csv", ".parquet")  # of a table
KEYS = ("notebook", "fixed", "cross", "zip", "seeds", "table")


@dataclass(frozen=True)
class Run:
    """One run of a grid: the notebook, every given parameter, and those that tell it from the others."""

    notebook: str
    given: dict
    varied: dict

    def __str__(self):
        return " ".join([self.notebook, *(f"{k}={_text(v)}" for k, v in self.varied.items())])

    @property
    def texts(self):
        return tuple((name, _text(value)) for name, value in self.given.items())

    def command(self, out):
        """The command that repeats it."""
        given = [word for k, v in self.texts for word in ("-p", f"{k}={v}")]
        return shlex.join(["safealign", "run", self.notebook, *given, "--out", str(out)])


def _text(value):
    """A value as `-p` takes it."""
    if isinstance(value, str):
        return value
    return json.dumps(list(value)) if isinstance(value, (list, tuple)) else json.dumps(value)


# ---------------------------------------------------------------- the grid
def read(file):
    """The grid of a YAML file, checked. Raises Refusal with the key, what it holds and the fix."""
    try:
        grid = strict_yaml.read(file)
    except ValueError as error:
        raise Refusal(f"grid file {error}") from None
    if not isinstance(grid, dict) or not grid.get("notebook"):
        raise Refusal(f"grid file {file}: names no notebook; write `notebook: 02_safedpo`")
    if unknown := [key for key in grid if key not in KEYS]:
        raise Refusal(f"grid file {file}: unknown key {unknown[0]!r}; {nearest(unknown[0], KEYS)}")
    for key in ("fixed", "cross", "zip"):
        part = grid.setdefault(key, None) or {}
        if not isinstance(part, dict):
            raise Refusal(f"grid file {file}: {key}={part!r} must hold `name: value`")
        for name, values in part.items() if key != "fixed" else ():
            if not isinstance(values, list) or not values:
                raise Refusal(
                    f"grid file {file}: {key}.{name}={values!r} must be a list of values; put one value in `fixed`"
                )
        grid[key] = part
    plain = lambda v: (
        isinstance(v, (str, bool, int, float)) or isinstance(v, list) and all(map(plain, v))
    )
    given = [
        *grid["fixed"].items(),
        *((k, v) for part in ("cross", "zip") for k, vs in grid[part].items() for v in vs),
    ]
    if bad := [(name, value) for name, value in given if not plain(value)]:
        name, value = bad[0]
        raise Refusal(
            f"grid file {file}: {name}={value!r} is no text, number or list; write texts in quotes"
        )
    lengths = {name: len(values) for name, values in grid["zip"].items()}
    if len(set(lengths.values())) > 1:
        raise Refusal(
            f"grid file {file}: the lists of zip must be of one length, are {lengths}; use cross for combinations"
        )
    names = [*grid["fixed"], *grid["cross"], *grid["zip"]]
    if twice := [name for name in names if names.count(name) > 1]:
        raise Refusal(
            f"grid file {file}: {twice[0]} is given twice; name it under one of fixed, cross, zip"
        )
    seeds = grid.get("seeds")
    if seeds is not None:
        if clash := {"seed", "seeds"} & set(names):
            raise Refusal(
                f"grid file {file}: {clash.pop()} and `seeds:` both choose seeds; keep one"
            )
        seeds = list(range(min(seeds, 10**5))) if type(seeds) is int else seeds
        if (
            not isinstance(seeds, list)
            or not seeds
            or not all(type(s) is int and s >= 0 for s in seeds)
        ):
            raise Refusal(
                f"grid file {file}: seeds={grid['seeds']!r} must be a number above 0, or a list of seeds"
            )
    grid["seeds"] = seeds
    for key in ("notebook", "table"):
        grid[key] = (
            grid[key] if isinstance(grid.get(key), list) else [grid[key]] if grid.get(key) else []
        )
    return grid


def settings(grid):
    """The settings of a grid, seeds aside: a list of {name: value}, the last name of `cross` running fastest."""
    zipped = [dict(zip(grid["zip"], values)) for values in zip(*grid["zip"].values())] or [{}]
    crossed = [
        dict(zip(grid["cross"], values)) for values in itertools.product(*grid["cross"].values())
    ]
    return [{**z, **c} for z in zipped for c in crossed]


def runs(grid):
    """Every run of a grid, in order: notebooks, settings, seeds."""
    seeds = [{}] if grid["seeds"] is None else [{"seed": s} for s in grid["seeds"]]
    one = {} if grid["seeds"] is None else {"seeds": 1}
    return [
        Run(str(notebook), {**grid["fixed"], **setting, **seed, **one}, {**setting, **seed})
        for notebook in grid["notebook"]
        for setting in settings(grid)
        for seed in seeds
    ]


# ---------------------------------------------------------------- the command
def sweep(args):
    """Check every run, execute what is not finished, gather the tables; 1 where a run failed."""
    grid = read(args.file)
    every, out, asked = runs(grid), Path(args.out).resolve() / Path(args.file).stem, {}
    before = _grid_of(out, args.file)
    if not args.dry_run:
        folders.check_cache()
        folders.check_out(out)
    for run in every:
        path, _, id = runner.prepare(run.notebook, run.texts)
        _check_tables(grid["table"], path)
        asked.setdefault(id, run)
    done = {id for id in asked if records.read(out / id)}
    failed = {
        id: message for id in asked if id not in done and (message := runner.failure(out, id))
    }
    if args.dry_run:
        for id, run in asked.items():
            print(
                f"{'done' if id in done else 'failed' if id in failed else 'to do':<7}{id}  {run}"
            )
    seeds = f" x {_many(len(grid['seeds']), 'seed')}" if grid["seeds"] else ""
    same = (
        f" ({len(every) - len(asked)} of them the same as another)"
        if len(every) > len(asked)
        else ""
    )
    print(
        f"{_many(len(settings(grid)) * len(grid['notebook']), 'setting')}{seeds} = {_many(len(every), 'run')}{same}: "
        f"{len(done)} done, {len(failed)} failed, {len(asked) - len(done) - len(failed)} to do"
    )
    if args.dry_run:
        return 0
    runner.remove_leftovers(out)
    if not _remembered(out).is_file():
        _remember(out, args.file)
    problems = {} if args.retry else failed
    todo = {id: run for id, run in asked.items() if id not in done and id not in problems}
    if todo:
        problems = problems | _execute(todo, out, args)
    finished = {id: run for id, run in asked.items() if records.read(out / id)}
    paths = gather(finished, out, grid["table"]) if finished else []
    for old in (out / f"{name}{kind}" for name in ("table", *before) for kind in KINDS):
        if old not in paths:  # of runs that are no longer asked for
            old.unlink(missing_ok=True)
    _remember(out, args.file)
    print(*paths, sep="\n", end="\n" * bool(paths))
    for id, message in problems.items():
        print(
            f"\nfailed: {asked[id]}\n  {message}\n  again: {asked[id].command(_short(out))}",
            file=sys.stderr,
        )
    if problems:
        print(
            f"\n{len(problems)} of {len(asked)} runs failed; --retry repeats them, and only them",
            file=sys.stderr,
        )
    return 1 if problems else 0


def _remembered(out):
    """The file beside a sweep's folder that says whose it is: a first line with the path of the
    grid, then the grid."""
    return out.with_name(f"{out.name}.grid.yaml")


def _remember(out, file):
    """Write down which grid a sweep's folder is of; the path is relative, so that both may move
    together."""
    path = os.path.relpath(Path(file).resolve(), out.parent)
    write_whole(_remembered(out), f"# {json.dumps(path)}\n{Path(file).read_text(encoding='utf-8')}")


def _grid_of(out, file):
    """The tables that the grid of the folder names so far. Raises Refusal where it is another
    file's.

    The same file may have been edited, or moved: another one of its name, with other content, is
    what is refused.
    """
    memory = _remembered(out)
    if not memory.is_file():
        return []
    first, _, text = memory.read_text(encoding="utf-8").partition("\n")
    try:
        owner = (out.parent / json.loads(first.lstrip("# "))).resolve()
        tables = read(memory)["table"]
    except (ValueError, TypeError):
        raise Refusal(
            f"{memory}: is damaged; remove it, and {out} is taken for the folder of {file}"
        ) from None
    if owner != Path(file).resolve() and text != Path(file).read_text(encoding="utf-8"):
        if owner.is_file():
            raise Refusal(
                f"grid file {file}: {out} holds the runs of {owner}, another grid of this name; "
                "rename one of them, or give --out another folder"
            )
        print(
            f"{out} held the runs of {owner}, which is gone; it goes on with {file}",
            file=sys.stderr,
        )
    return tables


def _check_tables(names, notebook):
    """Refuse a table that the notebook does not save."""
    source = "".join(
        "".join(c["source"]) for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    )
    for name in names:
        if name == "table" or f'"{name}"' not in source:
            known = ", ".join(dict.fromkeys(re.findall(r'study\.table\("(\w+)"', source)))
            raise Refusal(
                f"table={name!r}: {notebook.stem} saves no table of that name; it has {known or 'none'}"
            )


def _many(n, word):
    return f"{n} {word}{'s' * (n != 1)}"


def _short(path):
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path


def _execute(todo, out, args):
    """Run what is left; {run_id: message} of what failed. Prints progress as runs end."""
    from . import pool

    jobs = {
        pool.Job(str(runner.find(r.notebook)), _absolute(r.texts), str(out), name=id, id=id): id
        for id, r in todo.items()
    }
    started, live, problems = time.monotonic(), sys.stderr.isatty(), {}
    outcomes = pool.execute(list(jobs), workers=args.workers, scheduler=args.scheduler)
    for n, outcome in enumerate(outcomes, 1):
        id = jobs[outcome.job]
        if outcome.error:
            problems[id] = outcome.error
        left = (time.monotonic() - started) / n * (len(jobs) - n)
        line = f"{n}/{len(jobs)} runs, {len(problems)} failed, about {_clock(left)} left"
        if live:
            print(f"\r{line}\033[K", end="" if n < len(jobs) else "\n", file=sys.stderr, flush=True)
        else:
            print(
                f"{line}: {todo[id]}: {'failed' if outcome.error else f'{outcome.seconds:.0f} s'}",
                flush=True,
            )
    return problems


def _absolute(texts):
    """Files that parameters name, by their full paths: a worker may stand in another folder."""
    return tuple((name, _full(name, text) if name in PATHS else text) for name, text in texts)


def _full(name, text):
    if text not in ("world", "scratch", "kit", "") and Path(text).exists():
        return str(Path(text).resolve())
    return absolute(text, name) if name in ("data", "eval_prompts") and "=" in text else text


def _clock(seconds):
    unit, word = next(
        (u, w) for u, w in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= 1.5 * u or u == 1
    )
    return f"{seconds / unit:.{int(unit == 3600)}f} {word}"


# ---------------------------------------------------------------- the tables
def gather(finished, out, tables=()):
    """Write the runs' metrics as one table, CSV and parquet, and the notebook's own `tables`; the paths.

    `table.csv` has a row for every run and method: run_id, notebook, what was varied, method, and a column for
    every quantity; a metric `safedpo[delta=5].unsafe` is the quantity `unsafe` of the method `safedpo[delta=5]`. A
    quantity with the name of something varied becomes `measured_<name>`; in the notebook's own tables, whose columns
    stay, it is what was varied that becomes `swept_<name>`.
    """
    import pandas as pd

    rows, own = [], {}
    for id, run in finished.items():
        record = records.read(out / id)
        given = {name: record["parameters"].get(name, value) for name, value in run.varied.items()}
        head = {"run_id": id, "notebook": run.notebook} | {
            k: json.dumps(v) if isinstance(v, list) else v for k, v in given.items()
        }
        methods = {}
        for name, value in record["metrics"].items():
            method, _, quantity = name.rpartition(".")
            methods.setdefault(method, {})[quantity] = value
        for method, values in methods.items():
            measured = {
                f"measured_{q}" if q in head or q == "method" else q: v for q, v in values.items()
            }
            rows.append({**head, "method": method, **measured})
        for name in tables:
            if (out / id / f"{name}.csv").is_file():
                part = pd.read_csv(out / id / f"{name}.csv")
                swept = {f"swept_{k}" if k in part else k: [v] * len(part) for k, v in head.items()}
                own.setdefault(name, []).append(pd.concat([pd.DataFrame(swept), part], axis=1))
    paths = _write(pd.DataFrame(rows), out / "table")
    for name, parts in own.items():
        paths += _write(pd.concat(parts, ignore_index=True), out / name)
    return paths


def _write(frame, target):
    """A table as CSV and parquet, through `datasets`, each beside its place and then renamed."""
    import datasets

    datasets.disable_progress_bars()
    data = datasets.Dataset.from_pandas(frame, preserve_index=False)
    paths = [target.with_name(target.name + kind) for kind in KINDS]
    for path, write in zip(paths, (data.to_csv, data.to_parquet)):
        beside = path.with_name(runner.hidden(path.name, "partial"))
        try:
            with open(beside, "wb") as file:  # a path would be read as a pattern or an address
                write(file)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    return paths
