"""The claims ledger: what the papers and the kit state, and how a verdict on it is found.

`claims.yaml` holds each claim once, with what would refute it and its rule. A notebook hands over
values, one per seed (paired differences where methods are compared), and the ledger judges. A claim
never raises; a rule nobody could fail has no place.
"""

from functools import cache as once
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from .. import intervals
from ..engine import boundary
from ..engine.boundary import shown
from . import strict_yaml
from .settings import NOTEBOOKS, of_kind, one_of

LEDGER = Path(__file__).with_name("claims.yaml")
SCOPES = ("exact", "statistical", "only at scale")
EVIDENCE = ("P", "S", "D", "M", "bar", "later")
_Text = of_kind(str, "a text", pattern=r"\S")
_PLACE = "a setting is given where the claim is judged"
_Id = of_kind(str, f"small letters, digits, _ and .; {_PLACE}", pattern=r"^[a-z0-9_.]+$")
_Rule = dict[Literal["above", "below"], int | Annotated[float, Field(allow_inf_nan=False)]]
_RULE = "one of {above: x}, {below: x}, x a finite number"


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Claim:
    """One line of the ledger; the head of claims.yaml says what each field holds.

    `range` is () where the value may have any size; `profile` names what would test a claim that is
    open only at scale.
    """

    id: _Id
    paper: _Text
    says: _Text
    evidence: one_of(*EVIDENCE)
    refuted_by: _Text
    notebook: _Text
    metric: _Text
    rule: of_kind(_Rule, _RULE, min_length=1, max_length=1)
    scope: one_of(*SCOPES)
    range: of_kind(tuple, "[low, high], high null for no end", strict=False) = ()
    profile: of_kind(str, "a text") = ""

    @property
    def source(self):
        """(kit), or (paper, place; evidence): printed before what it says."""
        bar = (self.paper, self.evidence) == ("kit", "bar")
        return "(kit)" if bar else f"({self.paper}; {self.evidence})"

    @property
    def bar(self):
        """The rule in words: "below 0.005"."""
        ((side, limit),) = self.rule.items()
        return f"{side} {limit:g}"


FIELDS = Claim.__pydantic_fields__


def read(text):
    """{id: Claim} of a ledger's YAML text, in its order. Raises Refusal with entry and fix."""
    with boundary.reading(LEDGER.name, "write it as the head of the file says"):
        return _claims(text)


def _claims(text):
    entries, out = strict_yaml.parse(text, LEDGER.name) or [], {}
    if not isinstance(entries, list):
        raise ValueError(f"{LEDGER.name}: write a list of claims, each starting with `- id:`")
    for number, entry in enumerate(entries, start=1):
        named = isinstance(entry, dict) and "id" in entry
        name = str(entry["id"]) if named else f"entry {number}"
        twice = "in the ledger twice; give it an id of its own" if name in out else ""
        if wrong := twice or _wrong(entry):
            raise ValueError(f"{LEDGER.name}: {name}: {wrong}")
        out[name] = Claim(**entry)
    return out


def _wrong(entry):
    """What is wrong with an entry, with the fix; "" where nothing is."""
    if not isinstance(entry, dict):
        return f"write it as fields: {', '.join(FIELDS)}"
    try:
        claim = Claim(**entry)
    except ValidationError as error:
        name = error.errors()[0]["loc"][0]
        if name not in FIELDS:
            return f"unknown field {name!r}; the fields are {', '.join(FIELDS)}"
        if name not in entry:
            return f"{name} is missing; every claim has {', '.join(FIELDS)}, the last two optional"
        return f"{name}: {shown(entry[name])} must be {FIELDS[name].description}"
    (limit,) = claim.rule.values()
    if "range" in entry and not _is_range(claim.range, limit):
        words = f"must be [low, high] with the rule's {limit:g} inside, high null for no end"
        return f"range: {entry['range']!r} {words}"
    if NOTEBOOKS.is_dir() and not (NOTEBOOKS / f"{claim.notebook}.ipynb").is_file():
        return f"notebook: {claim.notebook!r} is not in {NOTEBOOKS.name}/; leave its ending out"
    if (claim.scope == "only at scale") != bool(claim.profile.strip()):
        words = "say what would test it where the scope is 'only at scale', and nowhere else"
        return f"profile: {words}"
    return ""


def _is_range(ends, limit):
    low, high = ends if len(ends) == 2 else (None, None)
    numbers = (low, high if high is not None else low)
    if not all(type(end) in (int, float) and np.isfinite(end) for end in numbers):
        return False
    high = np.inf if high is None else high
    return low <= limit <= high and low < high


@once
def ledger():
    """{id: Claim}, in the order of the file. Raises ValueError for an entry that is none."""
    return read(LEDGER.read_text(encoding="utf-8"))


def judge(id, values=None, *, measured=None, **setting):
    """The verdict on a claim of the ledger: a dict of id, verdict, value, low, high, n.

    `values`: one per seed; or `measured` = (value, low, high, n), an interval found elsewhere (a
    bootstrap). The settings that a claim is judged at, `keep=0.2`, become part of the id.
    Statistical: `holds` where the whole interval lies on the rule's side, `does_not_hold` where it
    lies on the other, else `undecided`, as with one seed. Exact: the interval is the range of the
    values. A claim that is open only at scale takes no values: `needs_scale`. Raises KeyError for
    an id that the ledger does not have, and ValueError for values that cannot be judged.
    """
    if id not in ledger():
        raise KeyError(f"claim {id!r} is not in {LEDGER.name}: add it with its rule")
    claim = ledger()[id]
    texts = (f"{v:g}" if isinstance(v, float) else str(v) for v in setting.values())
    settings = ",".join(map("=".join, zip(setting, texts)))
    name = f"{id}[{settings}]" if setting else id
    if claim.scope == "only at scale":
        if values is not None or measured is not None:
            why = "open only at scale, so no value settles it here; see its profile"
            raise ValueError(f"claim {id}: {why}")
        return dict(id=name, verdict="needs_scale", value=None, low=None, high=None, n=0)
    if (values is None) == (measured is None):
        raise ValueError(f"claim {id}: give either values, one a seed, or a measured interval")
    value, low, high, n = _measure(claim, values) if measured is None else measured
    if not np.isfinite([v for v in (value, low, high) if v is not None]).all():
        raise ValueError(f"claim {id}: measured as {measured}; finite numbers are needed")
    ((side, limit),) = claim.rule.items()
    verdict = "undecided"
    if low is not None and low > limit or high is not None and high < limit:
        verdict = "holds" if (low > limit) == (side == "above") else "does_not_hold"
    return dict(id=name, verdict=verdict, value=value, low=low, high=high, n=n)


def _measure(claim, values):
    """(value, low, high, n) of a claim's values, one a seed. Raises ValueError."""
    values = np.asarray(values, dtype=float)
    if len(values) == 0 or not np.isfinite(values).all():
        words = f"judged on {values.tolist()}; one finite value a seed is needed"
        raise ValueError(f"claim {claim.id}: {words}")
    try:
        mean, low, high = intervals.over_seeds(values, tuple(claim.range) or None)
    except ValueError as error:
        raise ValueError(f"claim {claim.id}: {error}") from None
    if claim.scope == "exact":
        low, high = float(values.min()), float(values.max())
    return mean, low, high, len(values)


def found(judged, scope):
    """What was judged, in words: "0.0017, 0.0012 to 0.0025, n = 3"."""
    ends = (judged[k] for k in ("value", "low", "high"))
    value, low, high = (None if v is None else f"{round(v, 4) + 0.0:.4f}" for v in ends)  # no -0.0
    between = "" if low is None else f", {low} to {high}"
    if scope == "statistical" and low is not None and judged["low"] == judged["high"]:
        between = ", no variation"
    return f"{value}{between}, n = {judged['n']}"
