"""The command `verify`: run again from an empty cache and compare with committed reference values.

What is compared: the ledger; cells, settings, claims, metrics and every table cell of each
notebook; the finished runs in `--results`, with the bytes of their figures; the committed tables of
larger sweeps. Outputs inside the committed notebooks are nbval's (`make test`).

`tests/reference/<profile>/<notebook>/` holds `expected.json` (settings, metrics, claims, a hash of
each cell) and the tables as CSV, all to ten significant digits, `tests/reference/ledger.json` the
ledger. `tests/reference_values.py` writes them.
"""

import contextlib
import csv
import difflib
import hashlib
import io
import itertools
import json
import math
import os
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from ..engine import boundary
from ..study import claims, records
from ..study.records import COMMITTED
from ..study.settings import Refusal
from . import pool, runner

REFERENCE = runner.ROOT / "tests" / "reference"
MANIFEST = "manifest.json"
TOLERANCE = 1e-9  # absolute, relative above 1: another CPU in float64 stays a thousand times below
LOOSE = 2e-2  # what float32 on another machine may add to a claim's own interval
DIGITS = 10
SHOWN = 5  # failures named one by one in each table, and in the metrics
HASHES = ("data_hash", "reference_hash")
MACHINE = ("cpu", "device", "threads", "packages")
KINDS = ("number", "rule", "setting", "cell", "file")
KIND_OF = {"verdict": "rule", "columns": "file", "cells": "file"}  # of what is no number in a group
MARKS = {True: "[PASS]", False: "[FAIL]", None: "[SKIP]"}
CHANGES = {"replace": "not as in the reference values", "insert": "new", "delete": "now gone"}
COMPARED = {"schema": int, "status": str, "notebook": str, "parameters": dict, "metrics": dict}
COMPARED |= {"claims": list, "tables": list, "provenance": dict}
OF_A_RUN = {"run_id": str, "timings": dict, "figures": list}


@dataclass(frozen=True)
class Finding:
    """One line of the verification: did `what` in `where` come out as expected? None: skipped.

    `kind` is one of KINDS: what was compared.
    """

    passed: bool | None
    where: str
    what: str
    expected: str = ""
    got: str = ""
    tolerance: str = ""
    kind: str = "number"
    seconds: float = 0.0

    def __str__(self):
        kind = f" {self.kind}:" if self.passed is False else ""
        parts = [f"{MARKS[self.passed]}{kind} {self.where}: {self.what}"]
        parts += [f"expected {self.expected}, got {self.got}"] * bool(self.expected or self.got)
        parts += [f"tolerance {self.tolerance}"] * bool(self.tolerance)
        parts += [f"{self.seconds:.1f} s"] * bool(self.seconds)
        return "; ".join(parts)


class Group(NamedTuple):
    """{place: value} that are compared up to `within`; `words` say all of them at once."""

    words: str
    places: dict
    within: float = 0.0
    kind: str = "number"


ABSENT = Group("absent", {})


class Broken(Refusal):
    """A file that cannot be read: which, and why."""


def _named(findings):
    """The findings; a file that cannot be read ends them with one that names it."""
    try:
        yield from findings
    except Broken as error:
        yield Finding(False, *str(error).split(": ", 1), kind="file")


# ---------------------------------------------------------------- the command
def check(names=(), *, profile="small", workers=2, results="results"):
    """Exit status: 0 where all is as expected, else 1. Raises Refusal without reference values.

    `names`: notebooks, by name or file, all without any; `results`: the folder of finished runs.
    """
    started, folder, found = time.perf_counter(), REFERENCE / profile, []
    paths = [runner.find(name) for name in names] or runner.comparable()
    missing = [path.stem for path in paths if not (folder / path.stem / "expected.json").is_file()]
    if missing:
        fix = f"python tests/reference_values.py --profile {profile} {' '.join(missing)}"
        words = f"no reference values for {', '.join(missing)}; make them with {fix}"
        raise Refusal(f"--profile {profile}: {words}")
    known = {path.stem for path in paths}
    gone = [] if names else sorted({part.name for part in folder.iterdir()} - known)
    print(machine())
    fresh = []  # records
    for finding in itertools.chain(
        _named(compare_ledger(REFERENCE / "ledger.json")),
        (Finding(False, name, "notebook", "a notebook", "none", kind="file") for name in gone),
        _compare_runs(paths, folder, Path(results) / profile, workers, fresh),
        _named(compare_committed(COMMITTED)),
        _not_compared(Path(results), profile),
    ):
        found.append(finding)
        print(finding, flush=True)
    with contextlib.suppress(Broken):  # a ledger that cannot be read is named above
        print(*verdict_lines(fresh), sep="\n")
    failed = [finding for finding in found if finding.passed is False]
    print(*failed, sep="\n", end="\n" * bool(failed))
    print(f"{_summary(found, failed)}; {time.perf_counter() - started:.0f} s")
    return int(bool(failed))


def machine():
    """Processor, instruction set, threads and versions: what the digits were computed with."""
    made = records.provenance(data_hash="", reference_hash="")
    threads = os.environ.get("SAFEALIGN_THREADS", "1")
    versions = ", ".join(f"{name} {version}" for name, version in made["packages"].items())
    per_notebook = f"{threads} thread{'s' * (threads != '1')} a notebook"
    return f"{made['cpu']}; {per_notebook}; Python {made['python']}, {versions}"


def verdict_lines(records):
    """A line a claim of some records: kind, verdict over its settings, value, p and adjusted p."""
    known = ledger()
    for id, one in claims.summary(claims.by_claim(records)).items():
        claim = known.get(id)
        words = claims.found(one, claim.scope if claim else "")
        more = "" if one["adjusted"] is None else f", adjusted p = {one['adjusted']:.4f}"
        yield f"[verdict] {one['kind']}: {id}: {one['verdict'].replace('_', ' ')}, {words}{more}"


def _not_compared(results, profile):
    other = "full" if profile == "small" else "small"
    if any((results / other).glob("*/record.json")):
        words = f"not compared; `safealign verify --profile {other}` is for them"
        yield Finding(None, str(results / other), words)


def _summary(found, failed):
    skipped = sum(finding.passed is None for finding in found)
    count, kinds = len(found) - skipped, Counter(finding.kind for finding in failed)
    words = [f"{kinds[kind]} {kind}{'s' * (kinds[kind] > 1)}" for kind in KINDS if kinds[kind]]
    of_which = f" ({', '.join(words)})" if failed else ""
    more = f", {skipped} skipped" if skipped else ""
    return f"{count - len(failed)} of {count} passed, {len(failed)} failed{of_which}{more}"


# ---------------------------------------------------------------- notebooks
def rerun(paths, profile, out, workers=2):
    """Run notebooks from an empty cache below the folder `out`; yields their Outcomes."""
    given = (("profile", profile),)
    jobs = [pool.Job(str(path), given, str(out / profile), path.stem) for path in paths]
    before = os.environ.get("SAFEALIGN_CACHE")
    os.environ["SAFEALIGN_CACHE"] = str(out / "cache")
    try:
        yield from pool.execute(jobs, workers=workers, say=lambda _: None)
    finally:
        os.environ.pop("SAFEALIGN_CACHE")
        os.environ.update({"SAFEALIGN_CACHE": before} if before is not None else {})


def _compare_runs(paths, folder, results, workers, fresh):
    """Findings on a fresh run of each notebook, and on its finished one in the folder `results`.

    The records of the fresh runs are added to the list `fresh`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        for outcome in rerun(paths, folder.name, Path(temporary), workers):
            name = Path(outcome.job.notebook).stem
            what = "run" if outcome.error else "run again from an empty cache"
            error = " ".join(outcome.error.split())
            asked = ("a complete record", error) if error else ()
            end = dict(kind="cell", seconds=outcome.seconds)
            yield Finding(not outcome.error, name, what, *asked, **end)
            if not outcome.error:
                with contextlib.suppress(Broken):  # which the comparison names
                    fresh.append(read(outcome.folder))
                yield from _named(_compare_fresh(name, folder / name, outcome))
                finished = _compare_finished(results / name, folder / name, outcome.folder)
                yield from _named(finished)


def _compare_fresh(name, folder, outcome):
    expected = read(folder)
    yield from compare_cells(name, expected["cells"], outcome.job.notebook)
    how = dict(exact=read(outcome.folder)["float64"], wider=expected["wider"])
    yield from compare(name, values(folder, **how), values(outcome.folder, **how))


def _compare_finished(folder, expected, fresh):
    """Findings on a finished run against the fresh one; a run of another question is skipped."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    now, got, wider = read(fresh), read(folder), {}
    if got["run_id"] != now["run_id"]:
        words = f"another question (run id {got['run_id']}, now {now['run_id']}); not compared"
        yield Finding(None, str(folder), words)
        return
    with contextlib.suppress(Broken):  # which `_compare_fresh` has named
        wider = read(expected)["wider"]
    one, two = now["provenance"], got["provenance"]
    same = all(one.get(name) == two.get(name) for name in MACHINE)
    exact = now["float64"] or same and one.get("device") == "cpu"
    how = dict(exact=exact, same=same, wider=wider)
    yield from compare(str(folder), values(fresh, **how), values(folder, **how))


def cells(notebook):
    """A hash for each cell of a notebook, in order: kind, source and tags."""
    with _reading(notebook):
        parts = [(c, c["metadata"].get("tags", [])) for c in boundary.read_cells(notebook)]
        return [_hash([c["cell_type"], c["source"], tags]) for c, tags in parts]


def compare_cells(where, expected, notebook):
    """Findings on a notebook's cells, against those that the reference values were made with."""
    now, before = cells(notebook), list(map(str, expected))
    changes = difflib.SequenceMatcher(None, before, now, autojunk=False).get_opcodes()
    for tag, i, j, k, m in changes:
        if tag == "equal":
            continue
        start, end = (i + 1, j) if tag == "delete" else (k + 1, m)
        what = f"cell {start}" if start == end else f"cells {start} to {end}"
        sizes = (f"{j - i} cells", str(m - k)) if tag == "replace" and j - i != m - k else ()
        yield Finding(False, where, f"{what}: {CHANGES[tag]}", *sizes, kind="cell")
    if now == before:
        what = f"cells: {len(now)}, with their tags"
        yield Finding(True, where, what, tolerance="equal", kind="cell")


# ---------------------------------------------------------------- what is compared of a run
def read(folder):
    """The record of a run's folder, or expected.json of reference values. Raises Broken.

    Added: the `file`, its `wider` tolerances, and whether it is `float64`.
    """
    path, more = Path(folder) / "expected.json", {"cells": list}
    if not path.is_file():
        path, more = path.with_name("record.json"), OF_A_RUN
    record = _json(path)
    with _reading(path):
        for name, kind in (COMPARED | more).items():
            if not isinstance(record[name], kind):
                raise TypeError(f"{name} is {str(record[name])[:40]!r}, and no {kind.__name__}")
        stated = record.get("tolerances", {}).items()
        wider = {name: (float(entry["within"]), str(entry["why"])) for name, entry in stated}
    is_float64 = record["parameters"].get("dtype") == "float64"
    return record | {"file": path, "wider": wider, "float64": is_float64}


def values(folder, *, exact=True, same=None, wider=None):
    """{name: Group} of all that is compared of a run, or of reference values. Raises Broken.

    `exact`: digit for digit, but what `wider` {metric, or table.csv/column: (tolerance, why)}
    names; else settings and claims only, a claim's value within half its own interval and LOOSE.
    Figures: their bytes if `same`, only their names if not, nothing without.
    """
    folder, record = Path(folder), read(folder)
    asked = {name: record[name] for name in ("schema", "status", "notebook")} | record["parameters"]
    asked |= {name: record["provenance"].get(name) for name in HASHES}
    words = f"{len(asked)}, data and reference policies among them"
    out = {"settings": Group(words, asked, kind="setting")}
    with _reading(record["file"]):
        out |= {f"claim {claim['id']}": _claim(claim, exact) for claim in record["claims"]}
        if exact:
            out["metrics"] = Group("", record["metrics"], TOLERANCE)
            out["tables"] = _listed(folder, record["tables"], (".csv",))
            out |= {f"table {name}": _table(_rows(folder / name)) for name in record["tables"]}
            for name, how in (wider or {}).items():
                _set_apart(out, name, *how)
        else:
            words = "float32, made on another machine"
            out["metrics and tables are not compared"] = Group(words, {})
        if same is not None:
            out["figures"] = _listed(folder, record["figures"], (".png", ".svg"), same)
    return out


def _set_apart(out, name, within, why):
    """Give the metric or the table's column `name` a group of its own, whose words say why."""
    table, _, column = name.rpartition("/")
    group = out.get(f"table {table}" if table else "metrics", ABSENT)
    end = f", column {column}" if table else name
    mine = [place for place in group.places if place == name or table and place.endswith(end)]
    places = {place: group.places.pop(place) for place in mine}
    out[f"{name} ({why})"] = Group("", places, within)


def _listed(folder, names, endings, by_content=None):
    """{file: its state, or that it is missing or not listed} of a folder and its record."""
    there = {file.name: file for file in folder.iterdir() if file.suffix in endings}
    places = {name: "missing" for name in names} | dict.fromkeys(there, "not listed")
    for name in there.keys() & {*names}:
        places[name] = _digest_of(there[name]) if by_content else "there"
    words = "by name only, made on another machine" if by_content is False else ""
    return Group(words, dict(sorted(places.items())), kind="file")


def _claim(claim, exact=True):
    word, n, value, low, high = (claim[name] for name in ("verdict", "n", "value", "low", "high"))
    p = claim.get("p")
    words, places = word.replace("_", " "), {"verdict": word, "n": str(n), "value": value}
    half = 0.0 if low is None else (high - low) / 2
    if value is not None:
        between = "" if low is None else f" ({_said(low)} to {_said(high)})"
        words += f", {_said(value)}{between}, n = {n}"
    words += "" if p is None else f", p = {p:.3g}"
    if exact:
        return Group(words, places | {"low": low, "high": high, "p": p}, TOLERANCE)
    return Group(words, places, (LOOSE + half) / max(1.0, abs(value or 0.0)))


def _table(rows):
    """Row 1 is the first below the column names."""
    head, *rows = rows or [[]]
    places = {"columns": ", ".join(head), "cells": sum(map(len, rows))}
    for at, row in enumerate(rows, start=1):
        named = dict(zip(head, row, strict=False))  # a short row shows in the number of cells
        places |= {f"row {at}, column {column}": _number(text) for column, text in named.items()}
    return Group(f"{len(rows)} rows, {len(head)} columns", places, TOLERANCE)


# ---------------------------------------------------------------- how it is compared
def close(one, two, within=TOLERANCE):
    """Equal up to `within`, absolute or (above 1) relative; NaN and texts equal themselves."""
    if any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in (one, two)):
        return type(one) is type(two) and one == two
    same = math.isclose(one, two, rel_tol=within, abs_tol=within)
    return same or math.isnan(one) and math.isnan(two)


def compare(where, expected, got):
    """Findings on each Group: what differs is named place by place, or by the words of all."""
    for name in expected | got:
        one, two = expected.get(name, ABSENT), got.get(name, ABSENT)
        pairs = {
            place: (one.places.get(place, "absent"), two.places.get(place, "absent"))
            for place in one.places | two.places
        }
        wrong = [place for place, pair in pairs.items() if not close(*pair, one.within)]
        kind = (two if one is ABSENT else one).kind
        kind = next((KIND_OF[place] for place in wrong if place in KIND_OF), kind)
        more = dict(tolerance=f"{one.within:.4g}" if one.within else "equal", kind=kind)
        if one.words != two.words:
            yield Finding(not wrong, where, name, one.words, two.words, **more)
            continue
        if not wrong:
            yield Finding(True, where, f"{name}: {one.words or len(one.places)}", **more)
        for place in wrong[:SHOWN]:
            texts = (_said(value, DIGITS + 2) for value in pairs[place])
            yield Finding(False, where, f"{name}: {place}", *texts, **more)
        if len(wrong) > SHOWN:
            yield Finding(False, where, f"{name}: and {len(wrong) - SHOWN} more", **more)


def _compare_named(where, before, now, *, words, kind, whole):
    """Findings on two {name: {place: value}}: only what differs, or one that says `whole`."""
    groups = (
        {name: Group(words.format_map(entry), entry, kind=kind) for name, entry in entries.items()}
        for entries in (before, now)
    )
    found = [finding for finding in compare(where, *groups) if not finding.passed]
    yield from found or [Finding(True, where, whole, tolerance="equal", kind=kind)]


# ---------------------------------------------------------------- the ledger, committed tables
def ledger():
    """The claims ledger. Raises Broken, which is a Refusal, where its file cannot be read."""
    with _reading(claims.LEDGER):
        return claims.ledger()


def ledger_entries():
    """{id: rule in words, scope, digest of the other fields} of the ledger."""
    out = {}
    for id, claim in ledger().items():
        fields = asdict(claim)
        rule = fields.pop("rule")
        fields["why"] = claim.reason
        side = {"rule": f"{claim.side} {rule[claim.side]!r}", "scope": fields.pop("scope")}
        out[id] = side | {"text": _hash(fields)}
    return out


def compare_ledger(path):
    """Findings on every claim of the ledger, against the file that the reference values hold."""
    now = {f"claim {id}": entry for id, entry in ledger_entries().items()}
    whole = f"{len(now)} claims: rule, scope, words"
    with _reading(path):
        before = {f"claim {id}": entry for id, entry in _json(path).items()}
        how = dict(words="{rule} ({scope})", kind="rule", whole=whole)
        yield from _compare_named(claims.LEDGER.name, before, now, **how)


def manifest(folder):
    """{file: {sha256, date, commit, command}} of the committed tables, or {}. Raises Broken."""
    path = Path(folder) / MANIFEST
    listed, fields = _json(path) if path.is_file() else {}, ("sha256", "date", "commit", "command")
    with _reading(path):
        return {name: {k: str(entry[k]) for k in fields} for name, entry in listed.items()}


def compare_committed(folder):
    """Findings on the committed tables and figures: each has the bytes that its manifest says."""
    folder = Path(folder)
    where, listed = f"{folder.parent.name}/{folder.name}", manifest(folder)
    files = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file()}
    measured = {name for name in files if name != MANIFEST and not name.endswith(".md")}
    now = {name: {"sha256": _digest_of(files[name])} for name in sorted(measured)}
    if not listed:
        asked = f"one for each of {len(now)} files"
        yield Finding(False, f"{where}/{MANIFEST}", "entries", asked, "none", kind="file")
        return
    before = {name: {"sha256": entry["sha256"]} for name, entry in listed.items()}
    whole = f"bytes of committed tables and figures: {len(listed)}"
    how = dict(words="sha256 {sha256:.24}", kind="file", whole=whole)
    yield from _compare_named(where, before, now, **how)


# ---------------------------------------------------------------- files and words
@contextlib.contextmanager
def _reading(path):
    """Whatever is wrong with a file becomes Broken, which names it."""
    try:
        yield
    except (Broken, *boundary.STOPS):
        raise
    except BaseException as error:
        why = boundary.reason(error.__cause__ or error).removeprefix(f"{path}: ")
        raise Broken(f"{path}: cannot be read: {why}") from None


def _json(path):
    with _reading(path):
        # What has more digits than a float can hold becomes infinite.
        return boundary.read_json(path, parse_int=lambda n: int(n) if len(n) < 16 else float(n))


def _rows(path):
    with _reading(path):
        return list(csv.reader(io.StringIO(boundary.read_text(path), newline="")))


def _digest_of(file):
    with _reading(file):
        return _digest(boundary.read_bytes(file, limit=boundary.ROWS))


def _digest(content):
    return hashlib.sha256(content).hexdigest()


def _hash(content):
    return _digest(json.dumps(content).encode())[:12]


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text


def _said(value, digits=DIGITS):
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
