"""The command `report`: verdicts, tables, figures and provenance of finished runs as one self-contained HTML page.

The page needs no network, no script and no font of its own. Executed notebooks are written as HTML too, beside
`page.html` into `page_notebooks/`.
"""

from pathlib import Path

import nbformat
import pandas as pd

from ..engine import cache
from ..study import records
from ..study.records import COMMITTED
from ..study.settings import Refusal
from . import pages, runner, verify

VERDICTS = {  # word: (words on the page, a sign that needs no colour)
    "holds": ("holds", "✓"),
    "does_not_hold": ("does not hold", "✕"),
    "undecided": ("undecided", "?"),
    "needs_scale": ("needs scale", "↗"),
    "not_measured": ("not measured in these records", "–"),
}
EVIDENCE = {
    "P": "the paper's own text",
    "S": "quoted by somebody else",
    "D": "derived, and checked numerically",
    "M": "from memory",
    "bar": "a bar that the kit set before its runs",
    "later": "written after first results were known",
}
SCOPES = {
    "exact": "exact values, no sampling in them",
    "statistical": "over seeds",
    "only at scale": "open here, only at scale",
}
QUANTITIES = (
    "reward",
    "cost",
    "unsafe",
    "benign_refusal",
    "kl_ref",
    "kl_opt",
    "tv_opt",
    "frontier_gap",
    "leak",
)


def report(args):
    profile = args.profile or ("full" if _runs(Path(args.results) / "full") else "small")
    folder = Path(args.results) / profile
    page, found = write(folder, args.out), _counts(_judged(_runs(folder)))
    print(page)
    print(", ".join(f"{n} {VERDICTS[word][0]}" for word, n in found.items() if n))
    return 0


def write(folder, out="", *, committed=COMMITTED):
    """Write the page of the runs below `folder`, results/PROFILE; returns its path. Raises Refusal without any run."""
    folder = Path(folder)
    out, profile = Path(out or folder / "report.html"), folder.name
    runs = _runs(folder)
    if not runs:
        fix = f"`make reproduce PROFILE={profile if profile in ('small', 'full') else 'small'}` makes them"
        raise Refusal(f"--results {folder.parent}: {folder} holds no finished run; {fix}")
    known, beside = (
        [path.stem for path in runner.numbered()],
        out.with_name(f"{out.stem}_notebooks"),
    )
    judged = _judged(runs)
    try:
        for name in runs:
            text = pages.notebook(
                folder / name / f"{name}.ipynb", known=runs, back=f"../{out.name}"
            )
            cache.write_whole(beside / f"{name}.html", text)
        text = pages.template("report.html.j2").render(
            profile=profile,
            beside=beside.name,
            counts=_counts(judged),
            number=pages.number,
            words=VERDICTS,
            evidence=EVIDENCE,
            scopes=SCOPES,
            missing=[name for name in known if name not in runs],
            total=len({*known, *runs}),
            groups=_grouped(judged, runs, folder),
            notebooks=[_notebook(folder / name, runs[name]) for name in runs],
            provenance=_provenance(runs),
            sweeps=_sweeps(Path(committed)),
        )
        cache.write_whole(out, text)
    except OSError as error:
        raise Refusal(
            f"--out {out}: cannot be written ({error.strerror or error}); name another file"
        ) from None
    return out


def _runs(folder):
    """{name: record} of the finished runs in a folder, in reading order."""
    found = {
        path.parent.name: records.read(path.parent)
        for path in sorted(Path(folder).glob("*/record.json"))
    }
    return {
        name: r
        for name, r in found.items()
        if r and (Path(folder) / name / f"{name}.ipynb").is_file()
    }


# ---------------------------------------------------------------- claims
def _judged(runs):
    """Every claim of the ledger with its verdicts in these records, then what the ledger does not know."""
    found = {}
    for record in runs.values():
        for verdict in record["claims"]:
            id, _, setting = verdict["id"].partition("[")
            found.setdefault(id, []).append(
                verdict | {"setting": setting.rstrip("]"), "word": verdict["verdict"]}
            )
    out = []
    for id, claim in verify.ledger().items():
        verdicts = found.pop(id, [])
        if claim.scope == "only at scale":
            verdicts = [{"word": "needs_scale", "value": None, "setting": ""}]
        verdicts = verdicts or [{"word": "not_measured", "value": None, "setting": ""}]
        for v in verdicts:
            v["drawing"] = (
                ""
                if v["value"] is None
                else pages.interval(claim.rule, v["value"], v["low"], v["high"])
            )
        sweeps = _sweeps_of(claim.notebook) if claim.notebook in runs else []
        out.append(
            {
                "id": id,
                "claim": claim,
                "notebook": claim.notebook,
                "verdicts": verdicts,
                "sweeps": sweeps,
            }
        )
    for id, verdicts in found.items():
        where = next(
            name
            for name, r in runs.items()
            if any(c["id"].partition("[")[0] == id for c in r["claims"])
        )
        out.append(
            {
                "id": id,
                "claim": None,
                "notebook": where,
                "verdicts": [v | {"drawing": ""} for v in verdicts],
            }
        )
    return out


def _sweeps_of(notebook):
    """The larger grids over a notebook, as files below the project."""
    files = sorted((runner.ROOT / "notebooks" / "sweeps").glob("*.yaml"))
    return [
        f"notebooks/sweeps/{f.name}"
        for f in files
        if f"notebook: {notebook}\n" in f.read_text(encoding="utf-8")
    ]


def _counts(judged):
    """{verdict: how often}; a claim that is judged at several settings counts once for each."""
    return {
        word: sum(v["word"] == word for claim in judged for v in claim["verdicts"])
        for word in VERDICTS
    }


def _grouped(judged, runs, folder):
    """[(notebook, its title, whether it was run, its claims, their counts)], in reading order."""
    out = []
    for name in sorted({claim["notebook"] for claim in judged}):
        source = (
            folder / name / f"{name}.ipynb"
            if name in runs
            else runner.ROOT / "notebooks" / f"{name}.ipynb"
        )
        title = pages.heading(nbformat.read(source, as_version=4))[0] if source.is_file() else name
        mine = [claim for claim in judged if claim["notebook"] == name]
        out.append((name, title, name in runs, mine, _counts(mine)))
    return out


# ---------------------------------------------------------------- notebooks
def _notebook(folder, record):
    title, first = pages.heading(nbformat.read(folder / f"{folder.name}.ipynb", as_version=4))
    stems = dict.fromkeys(Path(name).stem for name in record["figures"])
    return {
        "name": folder.name,
        "title": title,
        "first": first,
        "record": record,
        "facts": _facts(record),
        "headline": _headline(record["metrics"]),
        "figures": [pages.figure(folder / stem) for stem in stems],
        "tables": [(Path(name).stem, pages.read_table(folder / name)) for name in record["tables"]],
    }


def _facts(record):
    p, t = record["parameters"], record["timings"]
    first, count = p.get("seed", 0), p.get("seeds", 1)
    facts = {
        "seeds": f"{first} to {first + count - 1}" if count > 1 else str(first),
        "precision": p.get("dtype", ""),
    }
    for name, words in (("pairs", "pairs"), ("steps", "steps"), ("beta", "β"), ("data", "data")):
        if name in p:
            facts[words] = p[name] if isinstance(p[name], str) else f"{p[name]:,g}"
    facts |= {"seconds": f"{t['total']:.0f}", "memory": f"{t['peak_memory_bytes'] / 2**20:,.0f} MB"}
    return facts


def _headline(metrics):
    """The metrics `method.quantity` at the headline setting as rows of a table, None where nothing is one."""
    rows = {}
    for name, value in metrics.items():
        method, _, quantity = name.rpartition(".")
        if quantity in QUANTITIES and method and "[" not in method:
            rows.setdefault(method, {})[quantity] = value
    table = pd.DataFrame(
        list(rows.values()),
        columns=[q for q in QUANTITIES if any(q in row for row in rows.values())],
    )
    table.insert(0, "method", list(rows))
    return pages.table(table) if rows else None


# ---------------------------------------------------------------- where all this comes from
def _provenance(runs):
    rows = []
    for name, r in runs.items():
        p, t = r["provenance"], r["timings"]
        of = {"notebook": name, "run id": r["run_id"], "commit": p.get("git") or "no checkout"}
        for column in ("code", "python", "cpu", "device", "threads", "data_hash", "reference_hash"):
            of[column.replace("_", " ")] = p.get(column, "")
        rows.append(
            of | {"seconds": round(t["total"], 1), "MB": round(t["peak_memory_bytes"] / 2**20)}
        )
    packages = {}
    for r in runs.values():
        for name, version in r["provenance"].get("packages", {}).items():
            packages.setdefault(name, {})[version] = None
    return {
        "table": pages.table(pd.DataFrame(rows)),
        "packages": {name: " and ".join(versions) for name, versions in packages.items()},
        "codes": sorted({r["provenance"].get("code", "") for r in runs.values()}),
        "commits": sorted({r["provenance"].get("git", "") or "no checkout" for r in runs.values()}),
    }


def _sweeps(folder):
    """Committed tables and figures by the command that made them; `same`: the bytes are those of the manifest."""
    groups, listed = {}, verify.manifest(folder)
    bad = {f.what for f in verify.compare_committed(folder) if not f.passed} if listed else set()
    for name, entry in listed.items():
        path = folder / name
        kind = (
            {".csv": "table", ".png": "figure"}.get(path.suffix, "text")
            if path.is_file()
            else "missing"
        )
        item = {"name": name, "kind": kind, "same": name not in bad}
        if kind == "table":
            item["table"] = pages.read_table(path)
        elif kind == "figure":
            item["figure"] = pages.figure(path.with_suffix(""))
        elif kind == "text":
            item["text"] = path.read_text(encoding="utf-8", errors="replace")
        groups.setdefault((entry["command"], entry["commit"], entry["date"]), []).append(item)
    return [
        {"command": c, "commit": h, "date": d, "items": items}
        for (c, h, d), items in groups.items()
    ]
