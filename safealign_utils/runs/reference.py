"""Reference values: what a notebook gave when its committed outputs were made, and how a new run is held against it.

`tests/reference/<profile>/<notebook>/` holds `expected.json` (settings, metrics, claims, a hash of each cell) and the
tables as CSV, all to ten significant digits; `tests/reference/ledger.json` what the ledger says. The folder
`notebooks/tables/` holds tables of larger sweeps, with a manifest of their hashes, dates, commits and commands.
"""

import contextlib
import csv
import difflib
import hashlib
import json
import math
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import yaml

from ..study import claims
from ..study.settings import Refusal

TOLERANCE = (
    1e-9  # absolute, or relative above 1: another CPU in float64 stays a thousand times below
)
WIDER = {
    "00_the_world": {
        "fresh.kl_behaviour": (
            0.01,
            "trained from scratch, which is chaotic: the bound of the notebook's own check",
        ),
        "fresh.leak": (
            0.02,
            "trained from scratch, which is chaotic: the bound of the notebook's own check",
        ),
    },
}  # {notebook: {metric, or table.csv/column: (tolerance, why)}}: what rounding moves farther on another CPU
LOOSE = 2e-2  # what float32 on another machine may add to a claim's own interval
DIGITS = 10
SHOWN = 5  # failures named one by one in each table, and in the metrics
MANIFEST = "manifest.json"
HASHES = ("data_hash", "reference_hash")
KINDS = ("number", "rule", "setting", "cell", "file")
NOT_MEASURED = ("README.md", MANIFEST)
KEPT = dict(
    schema=int,
    status=str,
    notebook=str,
    parameters=dict,
    metrics=dict,
    claims=list,
    tables=list,
    provenance=dict,
)
OF_A_RUN = dict(run_id=str, timings=dict, figures=list)
WRONG = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    csv.Error,
    yaml.YAMLError,
)
ABSENT = "absent", {}, 0.0
CHANGES = {
    "replace": "not as in the reference values",
    "insert": "new",
    "delete": "in the reference values, now gone",
}


@dataclass(frozen=True)
class Finding:
    """One line of the verification: did `what` in `where` come out as expected? `passed` is None
    where skipped.

    `kind` is one of KINDS: what was compared, which says where to look if it failed.
    """

    passed: bool | None
    where: str
    what: str
    expected: str = ""
    got: str = ""
    tolerance: str = ""
    kind: str = "number"


class Broken(Refusal):
    """A file that cannot be read: which, and why."""


@contextlib.contextmanager
def _reading(path):
    """Whatever is wrong with a file becomes Broken, which names it."""
    try:
        yield
    except WRONG as error:
        if isinstance(error, Broken):
            raise
        why = (
            f"it lacks {error}"
            if isinstance(error, KeyError)
            else getattr(error, "strerror", None) or str(error)
        )
        raise Broken(f"{path}: cannot be read: {' '.join(why.split())}") from None


def _json(path):
    long = lambda text: int(text) if len(text) < 16 else float(text)
    with _reading(path):
        return json.loads(Path(path).read_text(encoding="utf-8"), parse_int=long)


def _rows(path):
    with _reading(path), open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _hash(content):
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


# ---------------------------------------------------------------- what a run's folder says
def read(folder):
    """The record of a run's folder, or the expected.json of one of reference values. Raises Broken."""
    kept = Path(folder) / "expected.json"
    path = kept if kept.is_file() else kept.with_name("record.json")
    record = _json(path)
    with _reading(path):
        for name, kind in (KEPT | ({"cells": list} if path == kept else OF_A_RUN)).items():
            if not isinstance(record[name], kind):
                raise TypeError(f"{name} is {str(record[name])[:40]!r}, and no {kind.__name__}")
        record.setdefault("tolerances", {})
        wider = {
            name: (float(entry["within"]), str(entry["why"]))
            for name, entry in record["tolerances"].items()
        }
    return record | {"file": path, "wider": wider}


def values(folder, *, exact=True, same=None, wider=()):
    """{group: (its words, {place: value}, tolerance)}: all that is compared of a run, or of reference values.

    `exact`: digit for digit, but what `wider` {metric, or table.csv/column: (tolerance, why)}
    names; else settings and claims only, a claim's value within half its own interval and LOOSE.
    Figures: their bytes if `same`, only their names if not, nothing without. Raises Broken.
    """
    folder, record = Path(folder), read(folder)
    asked = {name: record[name] for name in ("schema", "status", "notebook")} | record["parameters"]
    asked |= {name: record["provenance"].get(name) for name in HASHES}
    out = {"settings": (f"{len(asked)}, data and reference policies among them", asked, 0.0)}
    with _reading(record["file"]):
        out |= {f"claim {claim['id']}": _claim(claim, exact) for claim in record["claims"]}
        if exact:
            out["metrics"] = "", record["metrics"], TOLERANCE
            out["tables"] = (
                "",
                _listed(folder, record["tables"], (".csv",), lambda path: "there"),
                0.0,
            )
            out |= {f"table {name}": _table(_rows(folder / name)) for name in record["tables"]}
            for name, (within, why) in dict(wider).items():
                _set_apart(out, name, within, why)
        else:
            out["metrics and tables are not compared"] = "float32, made on another machine", {}, 0.0
        if same is not None:
            state, words = (
                (_digest, "")
                if same
                else (lambda path: "there", "by name only, made on another machine")
            )
            out["figures"] = words, _listed(folder, record["figures"], (".png", ".svg"), state), 0.0
    return out


def _set_apart(out, name, within, why):
    """Give the metric or the table's column `name` a group with its own tolerance, whose words say
    why."""
    table, _, column = name.rpartition("/")
    words, places, usual = out.get(f"table {table}" if table else "metrics", ABSENT)
    mine = {
        k: v
        for k, v in places.items()
        if (k.endswith(f", column {column}") if table else k == name)
    }
    rest = {k: v for k, v in places.items() if k not in mine}
    out[f"table {table}" if table else "metrics"] = words, rest, usual
    out[f"{name} ({why})"] = "", mine, within


def _listed(folder, names, endings, state):
    """{file: its state, or that it is missing or not listed} of the files of a kind in a folder, and in its record."""
    there = {
        f.name: state(f) if f.name in names else "not listed"
        for f in folder.iterdir()
        if f.suffix in endings
    }
    return {name: "missing" for name in names} | there


def _claim(claim, exact=True):
    word, n, value, low, high = (claim[name] for name in ("verdict", "n", "value", "low", "high"))
    between = "" if low is None else f" ({_said(low)} to {_said(high)})"
    words = word.replace("_", " ") + (
        "" if value is None else f", {_said(value)}{between}, n = {n}"
    )
    found = {"verdict": word, "n": str(n), "value": value}
    if exact:
        return words, found | {"low": low, "high": high}, TOLERANCE
    return (
        words,
        found,
        (LOOSE + (0.0 if low is None else (high - low) / 2)) / max(1.0, abs(value or 0.0)),
    )


def _table(rows):
    """Row 1 is the first below the column names."""
    head, *rows = rows or [[]]
    found = {"columns": ", ".join(head)}
    for at, row in enumerate(rows, start=1):
        found |= {f"row {at}, column {column}": _number(text) for column, text in zip(head, row)}
        if len(row) != len(head):
            found[f"row {at}"] = f"{len(row)} cells"
    return f"{len(rows)} rows, {len(head)} columns", found, TOLERANCE


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text


def _said(value, digits=DIGITS):
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def close(one, two, within=TOLERANCE):
    """Equal up to `within`, absolute or (above 1) relative; what is no number, and NaN, equals itself only."""
    if any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in (one, two)):
        return type(one) is type(two) and one == two
    if not (math.isfinite(one) and math.isfinite(two)):
        return one == two or (math.isnan(one) and math.isnan(two))
    return abs(one - two) <= within * max(1.0, abs(one))


def compare(where, expected, got):
    """Findings on each group of `values`: what differs is named place by place, a claim or a shape as a whole."""
    for group in {**expected, **got}:
        (words, one, within), (other, two, _) = expected.get(group, ABSENT), got.get(group, ABSENT)
        pairs = {
            place: (one.get(place, "absent"), two.get(place, "absent")) for place in {**one, **two}
        }
        wrong = [place for place, (a, b) in pairs.items() if not close(a, b, within)]
        more = {"tolerance": f"{within:.4g}" if within else "equal", "kind": _kind(group, wrong)}
        if not wrong:
            texts = (f"{group}: {words or len(one)}",) if words == other else (group, words, other)
            yield Finding(True, where, *texts, **more)
        elif words != other:
            yield Finding(False, where, group, words, other, **more)
        else:
            for place in wrong[:SHOWN]:
                texts = (_said(value, DIGITS + 2) for value in pairs[place])
                yield Finding(False, where, f"{group}: {place}", *texts, **more)
            if len(wrong) > SHOWN:
                yield Finding(False, where, f"{group}: and {len(wrong) - SHOWN} more", **more)


def _kind(group, wrong):
    """The kind of what differs in a group of `values`: settings, rules and verdicts, files and
    their shape, numbers."""
    if group == "settings":
        return "setting"
    if group.startswith("claim ") and {"verdict", "rule", "scope", "text"} & {*wrong}:
        return "rule"
    shape = group.startswith("table ") and any("column " not in place for place in wrong)
    return "file" if group in ("tables", "figures", "bytes") or shape else "number"


def _wrong(where, expected, got, whole):
    """Only what differs; one finding that says `whole` where nothing does."""
    found = [finding for finding in compare(where, expected, got) if not finding.passed]
    return found or [Finding(True, where, whole, tolerance="equal")]


# ---------------------------------------------------------------- notebooks, the ledger, tables of sweeps
def write_reference(folder, target, notebook):
    """Make the folder of reference values `target` from a finished run's folder; its expected.json comes last."""
    folder, target, record = Path(folder), Path(target), read(folder)
    expected = {name: record[name] for name in KEPT} | {"cells": cells(notebook)}
    expected["provenance"] = {name: record["provenance"].get(name) for name in HASHES}
    rounded = lambda values: {
        name: float(_said(v)) if isinstance(v, float) else v for name, v in values.items()
    }
    expected["metrics"] = rounded(dict(sorted(record["metrics"].items())))
    expected["claims"] = list(map(rounded, record["claims"]))
    wider = WIDER.get(record["notebook"], {})
    expected["tolerances"] = {
        name: {"within": within, "why": why} for name, (within, why) in wider.items()
    }
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    short = lambda text: text if text.lstrip("-").isdigit() else _said(_number(text))
    for name in record["tables"]:
        with open(target / name, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(
                map(short, row) for row in _rows(folder / name)
            )
    _write(target / "expected.json", expected)


def cells(notebook):
    """A hash for each cell of a notebook, in order: kind, source and tags."""
    book = _json(notebook)
    with _reading(notebook):
        parts = [
            [c["cell_type"], "".join(c["source"]), c["metadata"].get("tags", [])]
            for c in book["cells"]
        ]
    return [_hash(part) for part in parts]


def compare_cells(where, expected, notebook):
    """Findings on a notebook's cells, against those that the reference values were made with."""
    now = cells(notebook)
    for tag, i, j, k, m in difflib.SequenceMatcher(
        None, list(map(str, expected)), now, autojunk=False
    ).get_opcodes():
        start, end = (i + 1, j) if tag == "delete" else (k + 1, m)
        what = f"cell {start}" if start == end else f"cells {start} to {end}"
        sizes = (f"{j - i} cells", str(m - k)) if tag == "replace" and j - i != m - k else ()
        if tag != "equal":
            yield Finding(False, where, f"{what}: {CHANGES[tag]}", *sizes, kind="cell")
    if now == expected:
        yield Finding(
            True, where, f"cells: {len(now)}, with their tags", tolerance="equal", kind="cell"
        )


def ledger():
    """The claims ledger. Raises Broken, which is a Refusal, where its file cannot be read."""
    with _reading(claims.LEDGER):
        return claims.ledger()


def _entries():
    """{id: rule in words, scope, digest of the other fields} of the ledger."""
    out = {}
    for id, claim in ledger().items():
        (rule,) = (f"{side} {limit!r}" for side, limit in claim.rule.items())
        other = {
            name: text for name, text in asdict(claim).items() if name not in ("rule", "scope")
        }
        out[id] = {"rule": rule, "scope": claim.scope, "text": _hash(other)}
    return out


def write_ledger(path):
    _write(path, _entries())


def compare_ledger(path):
    """Findings on every claim of the ledger, against the file that `write_ledger` made."""
    kept, now = _json(path), _entries()
    told = lambda entries: {
        f"claim {i}": (f"{e['rule']} ({e['scope']})", e, 0.0) for i, e in entries.items()
    }
    with _reading(path):
        for finding in _wrong(
            claims.LEDGER.name, told(kept), told(now), f"{len(now)} claims: rule, scope, words"
        ):
            yield replace(finding, kind="rule")


def manifest(folder):
    """{file: {sha256, date, commit, command}} of the committed tables; {} without one. Raises Broken."""
    path = Path(folder) / MANIFEST
    listed = _json(path) if path.is_file() else {}
    with _reading(path):
        return {
            n: {k: str(entry[k]) for k in ("sha256", "date", "commit", "command")}
            for n, entry in listed.items()
        }


def compare_committed(folder):
    """Findings on the committed tables and figures: each has the bytes that its manifest says."""
    folder, listed = (
        Path(folder),
        {name: entry["sha256"] for name, entry in manifest(folder).items()},
    )
    where = f"{folder.parent.name}/{folder.name}"
    files = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file()}
    there = {name: _digest(file) for name, file in files.items() if name not in NOT_MEASURED}
    none = Finding(
        False,
        f"{where}/{MANIFEST}",
        "entries",
        f"one for each of {len(there)} files",
        "none",
        kind="file",
    )
    told = lambda digests: {
        name: (f"sha256 {digest[:24]}", {"": digest}, 0.0) for name, digest in digests.items()
    }
    whole = f"bytes of committed tables and figures: {len(listed)}"
    for finding in _wrong(where, told(listed), told(there), whole) if listed else [none]:
        yield replace(finding, kind="file")


def register(folder, names, *, command, date, commit):
    """Enter committed tables in the manifest, as they are now; what is no longer there leaves it."""
    folder, made = Path(folder), {"date": date, "commit": commit, "command": command}
    entries = {name: entry for name, entry in manifest(folder).items() if (folder / name).is_file()}
    entries |= {name: {"sha256": _digest(folder / name), **made} for name in names}
    _write(folder / MANIFEST, dict(sorted(entries.items())))
