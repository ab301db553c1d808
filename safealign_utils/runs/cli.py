"""The command `safealign`. A refusal is one message on stderr and exit status 2; a failed run is 1."""

import argparse
import errno
import importlib
import os
import sys

import argcomplete

from ..study.settings import Refusal

NO_ROOM = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EFBIG,
)  # of a disk or a folder
SHELLS = """shell completion:
  eval "$(register-python-argcomplete safealign)"       in bash or zsh, with .venv/bin on the PATH
"""


def _pair(text):
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r}: write name=value")
    return name, value


def _folder(text):
    """A folder to write to, `~` filled in: a shell does so in `--out ~/x`, but not in
    `--out=~/x`."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r}: name a folder, . for this one")
    return os.path.expanduser(text)


def _workers(text):
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number of processes, at least 1")
    return int(text)


def _names(**_):
    from . import runner

    return [path.stem for path in runner.numbered()]


def _settings(prefix, parsed_args, **_):
    """Completions of -p: the parameters of the notebook that is named before it."""
    from ..study import settings as parameters
    from . import runner

    cell = (
        parameters.read_cell(runner.find(parsed_args.notebook))
        if parsed_args.notebook
        else parameters.FIELDS
    )
    return [f"{name}=" for name in cell if name != "out_dir"]


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, *args, **options):
        super().__init__(*args, max_help_position=32, width=110, **options)


def _parser():
    parser = argparse.ArgumentParser(
        prog="safealign",
        formatter_class=_Help,
        epilog=SHELLS,
        description="Run SafeAlign Kit's notebooks as checked, resumable experiments. "
        "`safealign COMMAND --help` shows examples.",
    )
    parser.add_argument(
        "--debug", action="store_true", help="show the Python traceback of a refusal"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, where, words, examples):
        """A subcommand, done by the function `name` of the module `where`."""
        text = "examples:\n" + "\n".join(f"  safealign {e}" for e in examples)
        one = commands.add_parser(
            name, help=words, description=words, epilog=text, formatter_class=_Help
        )
        one.set_defaults(where=where)
        return one.add_argument

    at_work = dict(
        type=_workers,
        default=2,
        metavar="N",
        help="processes, one thread each (default: %(default)s)",
    )

    add = command(
        "run",
        "commands",
        "run one notebook; a finished run is not run again",
        [
            "run 01_dpo_basics                                  the small profile: a minute",
            "run 01_dpo_basics -p beta=1 -p seed=3 --out mine",
            "run 01_dpo_basics -f notebooks/profiles/real_text.yaml -p data=pairs.jsonl -p label=safer",
        ],
    )
    add("notebook", help="its name (01_dpo_basics) or a file").completer = _names
    many = dict(action="append", default=[])
    add(
        "-p", dest="given", type=_pair, metavar="NAME=VALUE", help="set a parameter", **many
    ).completer = _settings
    words = "a YAML file of parameters; a later one wins, and -p over all"
    add("-f", dest="files", metavar="FILE", type=os.path.expanduser, help=words, **many)
    words = "where the run's folder goes (default: %(default)s)"
    add("--out", default="results/runs", type=_folder, metavar="DIR", help=words)

    add = command(
        "sweep",
        "sweep",
        "run a grid of parameters; finished runs are not run again",
        [
            "sweep notebooks/sweeps/token_noise.yaml --dry-run  list and count the runs",
            "sweep notebooks/sweeps/token_noise.yaml --workers 2",
            "sweep grid.yaml --scheduler tcp://10.0.0.1:8786    on a Dask cluster that is there",
            "sweep grid.yaml --retry                            repeat what failed, and only that",
        ],
    )
    add(
        "file",
        type=os.path.expanduser,
        help="a grid file (YAML): notebook, fixed, cross, zip, seeds",
    )
    add("--workers", **at_work)
    add(
        "--scheduler",
        default="",
        metavar="ADDRESS",
        help="a running Dask scheduler, in place of --workers",
    )
    add("--dry-run", action="store_true", help="list and count the runs, and run none")
    add("--retry", action="store_true", help="run again what failed")
    words = "the runs go to DIR/NAME (default: %(default)s)"
    add("--out", default="results/sweeps", type=_folder, metavar="DIR", help=words)

    add = command(
        "plot",
        "plot",
        "draw a column of a sweep's table against a parameter, with intervals",
        [
            "plot results/sweeps/delta/table.csv --x delta --y unsafe --hue method",
            "plot table.parquet --x delta --y reward --only safedpo,dpo --out reward.png",
            "plot table.csv --x keep --y kl_opt --hue rule --where pairs=500 --where label_noise=0",
        ],
    )
    add("table", help="a CSV or parquet file")
    add("--x", required=True, metavar="COLUMN", help="the parameter on the x axis")
    add("--y", required=True, metavar="COLUMN", help="the quantity on the y axis")
    add(
        "--hue",
        default="method",
        metavar="COLUMN",
        help="one line for each value (default: %(default)s)",
    )
    add("--only", default="", metavar="A,B", help="these values of the hue only, in this order")
    add(
        "--where",
        dest="rows",
        type=_pair,
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="these rows only",
    )
    add(
        "--out",
        default="",
        metavar="FILE",
        help="a PNG or SVG file (default: both, beside the table)",
    )

    add = command(
        "reproduce",
        "commands",
        "run every notebook into results/PROFILE, then write the report",
        [
            "reproduce --profile small",
            "reproduce --workers 2",
        ],
    )
    add("--profile", default="full", choices=("small", "full"), help="default: %(default)s")
    add("--workers", **at_work)
    add("--out", default="results", type=_folder, metavar="DIR", help="default: %(default)s")

    add = command(
        "report",
        "report",
        "the verdicts, tables and figures of finished runs as one HTML page",
        [
            "report                                             of results/full, else of results/small",
            "report --profile small --out page.html",
        ],
    )
    add(
        "--profile",
        default="",
        choices=("small", "full", ""),
        help="whose records (default: full, else small)",
    )
    add("--results", default="results", metavar="DIR", help="default: %(default)s")
    add(
        "--out",
        default="",
        metavar="FILE",
        help="default: DIR/PROFILE/report.html; also writes report_notebooks/",
    )

    add = command(
        "verify",
        "verify",
        "run again and compare with the committed reference values",
        [
            "verify                                             every notebook at small, and every committed table",
            "verify 02_safedpo 03_cdpo_dual_gradient_descent",
        ],
    )
    add("notebooks", nargs="*", help="names; default: all").completer = _names
    add("--profile", default="small", choices=("small", "full"), help="default: %(default)s")
    add("--workers", **at_work)
    add(
        "--results",
        default="results",
        metavar="DIR",
        help="finished runs to compare too (default: %(default)s)",
    )

    words = "look at packages, device, threads, memory, disk and hub: [OK] or [FAIL] with the fix"
    command("doctor", "doctor", words, ["doctor"])

    add = command(
        "notebooks",
        "commands",
        "regenerate the committed outputs in place",
        ["notebooks 01_dpo_basics"],
    )
    add("names", nargs="*", help="notebooks; default: all").completer = _names
    return parser


def main(argv=None):
    parser = _parser()
    argcomplete.autocomplete(parser)
    args = parser.parse_args(argv)
    from .runner import Failed

    try:
        _check_words(sys.argv[1:] if argv is None else argv)
        return getattr(importlib.import_module(f".{args.where}", __package__), args.command)(args)
    except (Refusal, Failed) as error:
        if args.debug:
            raise
        print(f"safealign: {error}", file=sys.stderr)
        return 2 if isinstance(error, Refusal) else 1
    except OSError as error:
        if args.debug or error.errno not in NO_ROOM:
            raise
        words = f"cannot be written ({error.strerror}); make room, or name another --out"
        print(f"safealign: {error.filename or 'results'}: {words}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        from .pool import leave

        leave()


def _check_words(words):
    """Refuse bytes that are no text: they can be written into no record."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise Refusal(f"{word!r}: is no UTF-8 text; rename the file or folder") from None


if __name__ == "__main__":
    sys.exit(main())
