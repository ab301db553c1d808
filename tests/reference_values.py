"""Make the reference values that `safealign verify` and the tests compare with (make notebooks).

python tests/reference_values.py                      every notebook at small, into tests/reference/small,
                                                      and the claims ledger, into tests/reference/ledger.json
python tests/reference_values.py 02_safedpo 05_dog_selection
python tests/reference_values.py --table new.csv --command "safealign sweep ..." --commit 1a2b3c4
                                                      enter files of notebooks/tables in its manifest
"""

import argparse
import csv
import datetime
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from safealign_utils.engine.cache import write_whole
from safealign_utils.runs import runner, verify
from safealign_utils.study.records import COMMITTED

SCRATCH = "trained from scratch, which is chaotic: the bound of the notebook's own check"
# {notebook: {metric, or table.csv/column: (tolerance, why)}}: what rounding moves farther on another CPU
WIDER = {
    "00_the_world": {"fresh.kl_behaviour": (0.01, SCRATCH), "fresh.leak": (0.02, SCRATCH)},
}


def write_reference(folder, target, notebook):
    """Make the folder of reference values `target` from a finished run's folder; its expected.json comes last."""
    folder, target, record = Path(folder), Path(target), verify.read(folder)
    expected = {name: record[name] for name in verify.COMPARED}
    expected["cells"] = verify.cells(notebook)
    expected["provenance"] = {name: record["provenance"].get(name) for name in verify.HASHES}
    expected["metrics"] = _rounded(dict(sorted(record["metrics"].items())))
    expected["claims"] = [_rounded(claim) for claim in record["claims"]]
    wider = WIDER.get(record["notebook"], {})
    expected["tolerances"] = {
        name: {"within": within, "why": why} for name, (within, why) in wider.items()
    }
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in record["tables"]:
        with open(folder / name, encoding="utf-8", newline="") as file:
            rows = [[_short(text) for text in row] for row in csv.reader(file)]
        with open(target / name, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
    _write(target / "expected.json", expected)


def _rounded(values):
    return {name: float(f"{v:.10g}") if isinstance(v, float) else v for name, v in values.items()}


def _short(text):
    """A number of a table with ten digits; what is whole, or no number, as it is."""
    try:
        return text if text.lstrip("-").isdigit() else f"{float(text):.10g}"
    except ValueError:
        return text


def _write(path, content):
    write_whole(path, json.dumps(content, indent=1) + "\n")


def write_ledger(path):
    _write(path, verify.ledger_entries())


def register(folder, names, *, command, date, commit):
    """Enter committed tables in the manifest, as they are now; what is no longer there leaves it."""
    folder, made = Path(folder), {"date": date, "commit": commit, "command": command}
    entries = {
        name: entry for name, entry in verify.manifest(folder).items() if (folder / name).is_file()
    }
    for name in names:
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        entries[name] = {"sha256": digest, **made}
    _write(folder / verify.MANIFEST, dict(sorted(entries.items())))


def make(names, profile, workers):
    write_ledger(verify.REFERENCE / "ledger.json")
    paths, failed = [runner.find(name) for name in names] or runner.comparable(), 0
    with tempfile.TemporaryDirectory() as temporary:
        for outcome in verify.rerun(paths, profile, Path(temporary), workers):
            name = Path(outcome.job.notebook).stem
            target = verify.REFERENCE / profile / name
            if outcome.error:
                failed += 1
                print(f"{name}: {outcome.error}", file=sys.stderr)
                continue
            write_reference(outcome.folder, target, outcome.job.notebook)
            size = sum(f.stat().st_size for f in target.iterdir()) / 1024
            print(
                f"{name}: {len(outcome.record['metrics'])} metrics, {len(outcome.record['claims'])} claims, "
                f"{len(outcome.record['tables'])} tables, {size:.0f} KiB, {outcome.seconds:.0f} s",
                flush=True,
            )
    return int(failed > 0)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("names", nargs="*", help="notebooks; default: all")
    add("--profile", default="small", choices=("small", "full"))
    add("--workers", type=int, default=2)
    add("--table", nargs="+", default=[], metavar="FILE", help="enter these in the manifest")
    add("--command", default="", help="what made them")
    add("--commit", default="", help="of the code that made them (default: the checkout's)")
    add("--date", default="", help="when (default: today)")
    args = parser.parse_args()
    if not args.table:
        return make(args.names, args.profile, args.workers)
    if not args.command:
        parser.error("--table: say what made the files, --command '...'")
    ask = ["git", "rev-parse", "--short=7", "HEAD"]
    commit = args.commit or subprocess.check_output(ask, text=True).strip()
    date = args.date or datetime.date.today().isoformat()
    names = [Path(f).name for f in args.table]
    register(COMMITTED, names, command=args.command, date=date, commit=commit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
