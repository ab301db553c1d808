"""The claims ledger: what the papers and the kit state, and how a verdict on it is found.

`claims.yaml`, beside the package's science, holds each claim once: where it comes from, in our words, what would
refute it, where it is measured, and the rule. A notebook hands over values, one per seed (paired differences
where methods are compared), and the ledger judges. A claim never raises; a rule nobody could fail has no place.
"""

import re
from dataclasses import MISSING, dataclass, fields
from functools import cache as once

import numpy as np

from .. import intervals
from ..engine.cache import PACKAGE
from . import strict_yaml

LEDGER = PACKAGE / "study" / "claims.yaml"
NOTEBOOKS = PACKAGE.parent / "notebooks"
SCOPES = ("exact", "statistical", "only at scale")
SIDES = ("above", "below")
EVIDENCE = ("P", "S", "D", "M", "bar", "later")


@dataclass(frozen=True)
class Claim:
    """One line of the ledger.

    `paper` is where it is from: "kit", "2505.20065, Table 17", or "reading of ..." for what a paper is easily taken
    to mean. `evidence` is one of EVIDENCE: the papers' own text (P), somebody else's quotation (S), derived and
    checked numerically (D), from memory (M), a bar of the kit from before its runs (bar) or after them (later).
    `rule` is {"above": x} or {"below": x}: what every value (scope exact), or the whole 95 % interval of the mean
    over seeds (statistical), has to be. `range` is what the value can be at all, [low, high], high
    null where nothing bounds it: the interval stays inside; () where it may have any size.
    `profile` names what would test a claim that is open only at scale.
    """

    id: str
    paper: str
    says: str
    evidence: str
    refuted_by: str
    notebook: str
    metric: str
    rule: dict
    scope: str
    range: tuple = ()
    profile: str = ""

    @property
    def source(self):
        """(kit), or (paper, place; evidence): printed before what it says."""
        return (
            "(kit)"
            if (self.paper, self.evidence) == ("kit", "bar")
            else f"({self.paper}; {self.evidence})"
        )

    @property
    def bar(self):
        """The rule in words: "below 0.005"."""
        ((side, limit),) = self.rule.items()
        return f"{side} {limit:g}"


FIELDS = {f.name: f.default is MISSING for f in fields(Claim)}  # whether it must be given


def read(text):
    """{id: Claim} of a ledger's YAML text, in its order. Raises ValueError that names the entry and the fix."""
    entries, out = strict_yaml.parse(text, LEDGER.name) or [], {}
    if not isinstance(entries, list):
        raise ValueError(f"{LEDGER.name}: write a list of claims, each starting with `- id:`")
    for number, entry in enumerate(entries, start=1):
        name = (
            str(entry.get("id")) if isinstance(entry, dict) and "id" in entry else f"entry {number}"
        )
        wrong = "in the ledger twice; give it an id of its own" if name in out else _wrong(entry)
        if wrong:
            raise ValueError(f"{LEDGER.name}: {name}: {wrong}")
        out[name] = Claim(**entry | {"range": tuple(entry.get("range", ()))})
    return out


def _wrong(entry):
    """What is wrong with an entry of the ledger, with the fix; "" where nothing is."""
    if not isinstance(entry, dict):
        return f"write it as fields: {', '.join(FIELDS)}"
    if unknown := [k for k in entry if k not in FIELDS]:
        return f"unknown field {unknown[0]!r}; the fields are {', '.join(FIELDS)}"
    if missing := [k for k, needed in FIELDS.items() if needed and k not in entry]:
        return f"{missing[0]} is missing; every claim has {', '.join(k for k, needed in FIELDS.items() if needed)}"
    for k in FIELDS:
        if (
            k not in ("rule", "range")
            and k in entry
            and not (isinstance(entry[k], str) and entry[k].strip())
        ):
            return f"{k}: {entry[k]!r} is no text; write some"
    if not re.fullmatch(r"[a-z0-9_.]+", entry["id"]):
        return (
            "id: small letters, digits, _ and . only; a setting is given where the claim is judged"
        )
    for k, known in (("scope", SCOPES), ("evidence", EVIDENCE)):
        if entry[k] not in known:
            return f"{k}: {entry[k]!r}; choose one of {', '.join(known)}"
    rule = entry["rule"]
    if not isinstance(rule, dict) or len(rule) != 1 or next(iter(rule)) not in SIDES:
        return f"rule: {rule!r}; write one of {{above: x}}, {{below: x}}"
    limit = next(iter(rule.values()))
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not np.isfinite(limit):
        return f"rule: {limit!r} is no finite number"
    if "range" in entry and not _is_range(entry["range"], limit):
        return f"range: {entry['range']!r}; write [low, high] with the rule's {limit:g} inside, high null for no end"
    if NOTEBOOKS.is_dir() and not (NOTEBOOKS / f"{entry['notebook']}.ipynb").is_file():
        return f"notebook: {entry['notebook']!r} is not in {NOTEBOOKS.name}/; name one without its ending"
    if (entry["scope"] == "only at scale") != ("profile" in entry):
        return (
            "profile: say what would test it where the scope is 'only at scale', and nowhere else"
        )
    return ""


def _is_range(given, limit):
    if not isinstance(given, (list, tuple)) or len(given) != 2:
        return False
    low, high = given
    numbers = [low] if high is None else [low, high]
    if any(
        isinstance(v, bool) or not isinstance(v, (int, float)) or not np.isfinite(v)
        for v in numbers
    ):
        return False
    return low <= limit and (high is None or low < high and limit <= high)


@once
def ledger():
    """{id: Claim}, in the order of the file. Raises ValueError on an entry that cannot be judged."""
    return read(LEDGER.read_text(encoding="utf-8"))


def judge(id, values=None, *, measured=None, **setting):
    """The verdict on a claim of the ledger: a dict of id, verdict, value, low, high, n.

    `values`: one per seed; or `measured` = (value, low, high, n), an interval found elsewhere (a bootstrap).
    A claim that is judged at several settings names them, `keep=0.2`, and they become part of the id.
    Statistical: `holds` where the whole interval lies on the rule's side, `does_not_hold` where it lies on the
    other, else `undecided`, as with one seed. Exact: the interval is the range of the values. A claim that is open
    only at scale takes no values: `needs_scale`. Raises KeyError for an id that the ledger does not have, and
    ValueError for values that cannot be judged.
    """
    if id not in ledger():
        raise KeyError(f"claim {id!r} is not in {LEDGER.name}: add it with its rule")
    claim = ledger()[id]
    name = id + (f"[{','.join(f'{k}={_text(v)}' for k, v in setting.items())}]" if setting else "")
    if claim.scope == "only at scale":
        if values is not None or measured is not None:
            raise ValueError(
                f"claim {id}: open only at scale, so no value settles it here; see its profile"
            )
        return {
            "id": name,
            "verdict": "needs_scale",
            "value": None,
            "low": None,
            "high": None,
            "n": 0,
        }
    if (values is None) == (measured is None):
        raise ValueError(f"claim {id}: give either values, one a seed, or a measured interval")
    if values is not None:
        values = np.asarray(values, dtype=float)
        if len(values) == 0 or not np.isfinite(values).all():
            raise ValueError(
                f"claim {id}: judged on {values.tolist()}; one finite value a seed is needed"
            )
        try:
            mean, low, high = intervals.over_seeds(values, tuple(claim.range) or None)
        except ValueError as error:
            raise ValueError(f"claim {id}: {error}") from None
        if claim.scope == "exact":
            low, high = float(values.min()), float(values.max())
        measured = mean, low, high, len(values)
    value, low, high, n = measured
    if not np.isfinite([v for v in (value, low, high) if v is not None]).all():
        raise ValueError(f"claim {id}: measured as {measured}; finite numbers are needed")
    return {
        "id": name,
        "verdict": _verdict(claim.rule, low, high),
        "value": value,
        "low": low,
        "high": high,
        "n": n,
    }


def found(judged, scope):
    """What was judged, in words: "0.0017, 0.0012 to 0.0025, n = 3"."""
    parts = (judged[k] for k in ("value", "low", "high"))
    value, low, high = (
        None if v is None else f"{round(v, 4) + 0.0:.4f}" for v in parts
    )  # never -0.0
    between = "" if low is None else f", {low} to {high}"
    if scope == "statistical" and low is not None and judged["low"] == judged["high"]:
        between = ", no variation"
    return f"{value}{between}, n = {judged['n']}"


def _verdict(rule, low, high):
    ((side, limit),) = rule.items()
    if low is None:
        return "undecided"
    sign = 1 if side == "above" else -1
    ends = sorted((sign * (low - limit), sign * (high - limit)))
    return "holds" if ends[0] > 0 else "does_not_hold" if ends[1] < 0 else "undecided"


def _text(value):
    return f"{value:g}" if isinstance(value, float) else str(value)
