"""The command `safealign`. A refusal is one message on stderr and exit status 2; a failed run is 1."""

import argparse
import sys
import time
from pathlib import Path

from .parameters import Refusal

EXAMPLES = """examples:
  safealign run 01_dpo_basics                                  the small profile: a minute
  safealign run 01_dpo_basics -p beta=1 -p seed=3 --out mine
  safealign run 01_dpo_basics -f notebooks/profiles/real_text.yaml -p data=pairs.jsonl -p label=safer
  safealign reproduce --profile full                           every notebook, into results/full
"""


def _pair(text):
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r}: write name=value")
    return name.strip(), value


def _parser():
    parser = argparse.ArgumentParser(
        prog="safealign", description="Run SafeAlign Kit's notebooks as checked, resumable experiments.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="show the Python traceback of a refusal")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run one notebook; a finished run is not run again")
    run.add_argument("notebook", help="its name (01_dpo_basics) or a file")
    run.add_argument(
        "-p",
        dest="given",
        type=_pair,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a parameter",
    )
    run.add_argument(
        "-f",
        dest="files",
        action="append",
        default=[],
        metavar="FILE",
        help="a YAML file of parameters; -p wins",
    )
    run.add_argument(
        "--out",
        default="results/runs",
        metavar="DIR",
        help="where the run's folder goes (default: %(default)s)",
    )
    every = commands.add_parser("reproduce", help="run every notebook into results/PROFILE")
    every.add_argument("--profile", default="full", help="small or full (default: %(default)s)")
    every.add_argument("--out", default="results", metavar="DIR", help="default: %(default)s")
    books = commands.add_parser("notebooks", help="regenerate the committed outputs in place")
    books.add_argument("names", nargs="*", help="notebooks; default: all")
    return parser


def main(argv=None):
    args = _parser().parse_args(argv)
    from .runner import Failed

    try:
        return {"run": _run, "reproduce": _reproduce, "notebooks": _notebooks}[args.command](args)
    except Refusal as error:
        if args.debug:
            raise
        print(f"safealign: {error}", file=sys.stderr)
        return 2
    except Failed as error:
        if args.debug:
            raise
        print(f"safealign: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("safealign: interrupted; finished runs are kept, nothing is half-written", file=sys.stderr)
        return 130


def _run(args):
    from . import runner

    folder, record, ran = runner.run(args.notebook, args.given, args.files, out=args.out)
    _report(record, folder, ran)
    return 0


def _reproduce(args):
    from . import runner

    started = time.perf_counter()
    for path in runner.numbered():
        out = Path(args.out) / args.profile
        folder, record, ran = runner.run(path, [("profile", args.profile)], out=out, name=path.stem)
        _report(record, folder, ran)
    print(
        f"reproduced in {time.perf_counter() - started:.0f} s; "
        f"records, tables and figures are in {Path(args.out) / args.profile}"
    )
    return 0


def _report(record, folder, ran):
    if not ran:
        print(f"{record['notebook']}: already complete, not run again\n  {folder}")
        return
    seconds, memory = record["timings"]["total"], record["timings"]["peak_memory_bytes"] / 2**20
    print(f"{record['notebook']}: complete in {seconds:.0f} s, {memory:.0f} MB\n  {folder}")
    for claim in record["claims"]:
        print(f"  [{claim['verdict'].replace('_', ' ')}] {claim['id']}: {claim['value']:.4f} (n = {claim['n']})")


def _notebooks(args):
    from . import runner

    names = args.names or [*runner.numbered(), *sorted((runner.ROOT / "notebooks" / "solutions").glob("*.ipynb"))]
    for path in map(runner.find, names):
        print(f"{path.name}: {'changed' if runner.regenerate(path) else 'unchanged'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
