"""Make the reference values that `safealign verify` and the tests compare with (make notebooks).

python tests/reference_values.py                      every notebook at small, into tests/reference/small,
                                                      and the claims ledger, into tests/reference/ledger.json
python tests/reference_values.py 02_safedpo 05_dog_selection
python tests/reference_values.py --table new.csv --command "safealign sweep ..." --commit 1a2b3c4
                                                      enter files of notebooks/tables in its manifest
"""

import argparse
import datetime
import subprocess
import sys
import tempfile
from pathlib import Path

from safealign_utils.runs import reference, runner
from safealign_utils.runs.verify import REFERENCE, rerun
from safealign_utils.study.records import COMMITTED


def make(names, profile, workers):
    reference.write_ledger(REFERENCE / "ledger.json")
    paths, failed = [runner.find(name) for name in names] or runner.numbered(), 0
    with tempfile.TemporaryDirectory() as temporary:
        for outcome in rerun(paths, profile, Path(temporary), workers):
            name = Path(outcome.job.notebook).stem
            if outcome.error:
                failed += 1
                print(f"{name}: {outcome.error}", file=sys.stderr)
                continue
            reference.write_reference(
                outcome.folder, REFERENCE / profile / name, outcome.job.notebook
            )
            size = sum(f.stat().st_size for f in (REFERENCE / profile / name).iterdir()) / 1024
            print(
                f"{name}: {len(outcome.record['metrics'])} metrics, {len(outcome.record['claims'])} claims, "
                f"{len(outcome.record['tables'])} tables, {size:.0f} KiB, {outcome.seconds:.0f} s",
                flush=True,
            )
    return int(failed > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="notebooks; default: all")
    parser.add_argument("--profile", default="small", choices=("small", "full"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--table", nargs="+", default=[], metavar="FILE", help="enter these in the manifest instead"
    )
    parser.add_argument("--command", default="", help="what made them")
    parser.add_argument(
        "--commit", default="", help="of the code that made them (default: the checkout's)"
    )
    parser.add_argument("--date", default="", help="when (default: today)")
    args = parser.parse_args()
    if not args.table:
        sys.exit(make(args.names, args.profile, args.workers))
    if not args.command:
        parser.error("--table: say what made the files, --command '...'")
    ask = ["git", "rev-parse", "--short=7", "HEAD"]
    commit = (
        args.commit
        or subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    )
    date = args.date or datetime.date.today().isoformat()
    reference.register(
        COMMITTED,
        [Path(f).name for f in args.table],
        command=args.command,
        date=date,
        commit=commit,
    )
