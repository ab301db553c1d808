"""The claims ledger: what the papers and the kit state, and how a verdict on it is found.

`claims.yaml` holds each claim once, with its kind, what would refute it and its rule. A notebook
hands over values, one per seed (paired differences where methods are compared), and the ledger
judges. A claim never raises; a rule nobody could fail has no place.

Each verdict has a p-value, two-sided: twice the smaller of that for "holds" and that for "does not
hold", so it is decided where p < 0.05. `together` makes one verdict of a claim that was judged at
several settings, `adjusted` corrects for the number of claims.
"""

from functools import cache as once
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from scipy import stats

from .. import intervals
from ..engine import boundary
from ..engine.boundary import shown
from . import strict_yaml
from .settings import NOTEBOOKS, of_kind, one_of

LEDGER = Path(__file__).with_name("claims.yaml")
KINDS = ("theorem", "world", "paper", "kit")
COUNTED = ("paper", "kit")  # among the claims whose number is corrected for
SCOPES = ("exact", "statistical", "only at scale")
EVIDENCE = ("P", "S", "D", "M", "bar", "later")
_Text = of_kind(str, "a text", pattern=r"\S")
_PLACE = "a setting is given where the claim is judged"
_Id = of_kind(str, f"small letters, digits, _ and .; {_PLACE}", pattern=r"^[a-z0-9_.]+$")
_Bar = int | Annotated[float, Field(allow_inf_nan=False)]
_Rule = dict[Literal["above", "below", "within", "why"], _Bar | Annotated[str, Field(min_length=1)]]
_RULE = "one of {above: x}, {below: x}, x a finite number, or {within: x, why: a text}"
SIDES = ("above", "below", "within")
DECIDED = (1 - intervals.LEVEL) / 2  # of each side of the 95 % interval


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Claim:
    """One line of the ledger; the head of claims.yaml says what each field holds.

    `kind` is one of KINDS. `range` is () where the value may have any size; `profile` names what
    would test a claim that is open only at scale; `why` says why a bar other than 0 is what it is
    (a margin says so in its rule).
    """

    id: _Id
    paper: _Text
    says: _Text
    evidence: one_of(*EVIDENCE)
    refuted_by: _Text
    notebook: _Text
    metric: _Text
    rule: of_kind(_Rule, _RULE, min_length=1, max_length=2)
    scope: one_of(*SCOPES)
    range: of_kind(tuple, "[low, high], high null for no end", strict=False) = ()
    profile: of_kind(str, "a text") = ""
    kind: one_of(*KINDS) = "kit"
    why: of_kind(str, "a text") = ""

    @property
    def source(self):
        """(kit), or (paper, place; evidence): printed before what it says."""
        bar = (self.paper, self.evidence) == ("kit", "bar")
        return "(kit)" if bar else f"({self.paper}; {self.evidence})"

    @property
    def side(self):
        """above, below or within."""
        return next(side for side in SIDES if side in self.rule)

    @property
    def limit(self):
        """The number of the rule; of `within`, the margin on either side of 0."""
        return float(self.rule[self.side])

    @property
    def reason(self):
        """Why the bar or margin is what it is; "" for 0."""
        return self.rule.get("why", "") or self.why

    @property
    def bounds(self):
        """The range as `intervals` takes it."""
        return tuple(self.range) or None

    @property
    def bar(self):
        """The rule in words: "below 0.005"."""
        return f"{self.side} {self.limit:g}"


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
            return f"{name} is missing; all but the last four are needed: {', '.join(FIELDS)}"
        return f"{name}: {shown(entry[name])} must be {FIELDS[name].description}"
    if wrong := _wrong_rule(claim):
        return wrong
    if "range" in entry and not _is_range(claim.range, claim):
        words = f"must be [low, high] with the rule's {claim.limit:g} inside, high null for no end"
        return f"range: {entry['range']!r} {words}"
    if NOTEBOOKS.is_dir() and not (NOTEBOOKS / f"{claim.notebook}.ipynb").is_file():
        return f"notebook: {claim.notebook!r} is not in {NOTEBOOKS.name}/; leave its ending out"
    if (claim.scope == "only at scale") != bool(claim.profile.strip()):
        words = "say what would test it where the scope is 'only at scale', and nowhere else"
        return f"profile: {words}"
    return ""


def _wrong_rule(claim):
    """What is wrong with a claim's rule, or its reason; "" where nothing is."""
    sides = [side for side in SIDES if side in claim.rule]
    numbers = all(type(claim.rule[side]) in (int, float) for side in sides)
    texts = all(type(v) is str for k, v in claim.rule.items() if k == "why")
    if len(sides) != 1 or not numbers or not texts:
        return f"rule: {claim.rule!r} must be {_RULE}"
    if (sides == ["within"]) != ("why" in claim.rule):
        return f"rule: {claim.rule!r}: a margin, and nothing else, has its why: in the rule"
    if sides == ["within"] and claim.limit <= 0:
        return f"rule: {claim.rule!r} must have a margin above 0"
    if claim.reason == "" and claim.limit and claim.scope != "only at scale":
        return "why: missing; a bar other than 0 says why it is what it is"
    return ""


def _is_range(ends, claim):
    low, high = ends if len(ends) == 2 else (None, None)
    numbers = (low, high if high is not None else low)
    if not all(type(end) in (int, float) and np.isfinite(end) for end in numbers):
        return False
    high = np.inf if high is None else high
    limits = (-claim.limit, claim.limit) if claim.side == "within" else (claim.limit,)
    return all(low < limit < high for limit in limits)


@once
def ledger():
    """{id: Claim}, in the order of the file. Raises ValueError for an entry that is none."""
    return read(LEDGER.read_text(encoding="utf-8"))


def judge(id, values=None, *, measured=None, **setting):
    """The verdict on a claim of the ledger: a dict of id, verdict, value, low, high, n, p.

    `values`: one per seed; or `measured` = (value, low, high, n), an interval found elsewhere (a
    bootstrap; it has no p). The settings that a claim is judged at, `keep=0.2`, become part of the
    id. Statistical: `holds` where the whole interval lies on the rule's side (`within`: between
    both margins, which is two one-sided tests), `does_not_hold` where it lies on the other, else
    `undecided`, as with one seed, or where a `measured` interval has no width. Exact: the interval
    is the range of the values, and there is no p. A claim that is open only at scale takes no
    values: `needs_scale`. Raises KeyError for an id that the ledger does not have, and ValueError
    for values that cannot be judged.
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
        nothing = dict(value=None, low=None, high=None, n=0, p=None)
        return dict(id=name, verdict="needs_scale", **nothing)
    if (values is None) == (measured is None):
        raise ValueError(f"claim {id}: give either values, one a seed, or a measured interval")
    value, low, high, n = _measure(claim, values) if measured is None else measured
    if not np.isfinite([v for v in (value, low, high) if v is not None]).all():
        raise ValueError(f"claim {id}: measured as {measured}; finite numbers are needed")
    p = None if measured is not None or claim.scope == "exact" else p_value(claim, values)
    verdict = verdict_of(claim, low, high)
    if measured is not None and claim.scope == "statistical" and low == high:
        verdict = "undecided"  # a bootstrap of what never varies has an interval without a width
    return dict(id=name, verdict=verdict, value=value, low=low, high=high, n=n, p=p)


def _measure(claim, values):
    """(value, low, high, n) of a claim's values, one a seed. Raises ValueError."""
    values = np.asarray(values, dtype=float)
    if len(values) == 0 or not np.isfinite(values).all():
        words = f"judged on {values.tolist()}; one finite value a seed is needed"
        raise ValueError(f"claim {claim.id}: {words}")
    try:
        mean, low, high = intervals.over_seeds(values, claim.bounds)
    except ValueError as error:
        raise ValueError(f"claim {claim.id}: {error}") from None
    if claim.scope == "exact":
        low, high = float(values.min()), float(values.max())
    return mean, low, high, len(values)


def verdict_of(claim, low, high):
    """holds, does_not_hold or undecided, from the ends of an interval (None for one seed)."""
    floor = {"above": claim.limit, "below": -np.inf, "within": -claim.limit}[claim.side]
    ceiling = np.inf if claim.side == "above" else claim.limit
    if low is None and high is None:
        return "undecided"
    if floor < low and high < ceiling:
        return "holds"
    return "does_not_hold" if high < floor or low > ceiling else "undecided"


def p_value(claim, values):
    """Two-sided p of a verdict on values, one a seed [n]; None for one seed."""

    def above(limit):
        return intervals.p_above(values, limit, claim.bounds)

    return None if len(values) < 2 else _both_ways(*one_sided(claim, above))


def one_sided(claim, above):
    """(p for "holds", p for "does not hold"); `above` is the p of a limit or less.

    `within` holds by two one-sided tests (Schuirmann 1987): the larger p of "not above -margin" and
    "not below margin". It does not hold where the value lies beyond either.
    """
    p = above(claim.limit)
    if claim.side == "above":
        return p, 1 - p
    if claim.side == "below":
        return 1 - p, p
    low = above(-claim.limit)
    return max(1 - p, low), min(p, 1 - low)


def _both_ways(*p):
    return min(1.0, 2 * min(p))


def together(claim, judged):
    """One verdict on a claim from those at its settings: a list of dicts of `judge`.

    It holds where it holds at every setting: the p for that is the largest of theirs. It does not
    hold where one setting refutes it: that p is the smallest, times their number. Value and
    interval are those of the setting that decides, whose id stands in `at`.
    """
    words = {one["verdict"] for one in judged}
    if any(one["p"] is None for one in judged):
        some = ("does_not_hold", "undecided", "needs_scale", "holds", "not_measured")
        verdict = next(word for word in some if word in words)
        one = next(one for one in judged if one["verdict"] == verdict)
        return one | dict(id=claim.id, at=one["id"], verdict=verdict)
    sides = [_sides(claim, one) for one in judged]
    against = min(range(len(sides)), key=lambda i: sides[i][1])
    holds, refuted = max(p for p, _ in sides), min(1.0, len(sides) * sides[against][1])
    decides = against if refuted < holds else max(range(len(sides)), key=lambda i: sides[i][0])
    p = _both_ways(holds, refuted)
    verdict = "undecided"
    if p < 2 * DECIDED:
        verdict = "holds" if holds < refuted else "does_not_hold"
    one = judged[decides]
    return one | dict(id=claim.id, at=one["id"], verdict=verdict, p=p)


def _sides(claim, judged):
    """(p for "holds", p for "does not hold") of a verdict with its two-sided p."""
    value, half = judged["value"], judged["p"] / 2
    on_its_side = {
        "above": value > claim.limit,
        "below": value < claim.limit,
        "within": abs(value) < claim.limit,
    }[claim.side]
    return (half, 1 - half) if on_its_side else (1 - half, half)


def adjusted(p):
    """p-values [n] corrected for their number: Benjamini and Hochberg 1995; None stays None.

    With the sign of each verdict, deciding where the adjusted p is below 0.05 keeps the share of
    wrong verdicts among the decided ones below 5 % (Benjamini and Yekutieli 2005).
    """
    known = [i for i, value in enumerate(p) if value is not None]
    out = list(p)
    if known:
        found = stats.false_discovery_control([p[i] for i in known], method="bh")
        for i, value in zip(known, found):
            out[i] = float(value)
    return out


def summary(judged):
    """{id: its one verdict, with kind and adjusted p} of {id: verdicts, one a setting}.

    An id that the ledger does not have keeps its first verdict, as a claim of the kit.
    """
    out, known = {}, ledger()
    for id, rows in judged.items():
        one = together(known[id], rows) if id in known else rows[0]
        out[id] = {"p": None} | one | {"kind": known[id].kind if id in known else "kit"}
    p = [one["p"] if one["kind"] in COUNTED else None for one in out.values()]
    for one, corrected in zip(out.values(), adjusted(p), strict=True):
        one["adjusted"] = corrected
    return out


def by_claim(records):
    """{id: verdicts, one a setting} of the records of runs."""
    out = {}
    for record in records:
        for one in record["claims"]:
            out.setdefault(one["id"].partition("[")[0], []).append({"p": None} | one)
    return out


def found(judged, scope):
    """What was judged, in words: "0.0017, 0.0012 to 0.0025, n = 3, p = 0.0004"."""
    ends = (judged[k] for k in ("value", "low", "high"))
    value, low, high = (None if v is None else f"{round(v, 4) + 0.0:.4f}" for v in ends)  # no -0.0
    between = "" if low is None else f", {low} to {high}"
    if scope == "statistical" and low is not None and judged["low"] == judged["high"]:
        between = ", no variation"
    p = judged.get("p")
    chance = "" if p is None else ", p < 0.0001" if p < 1e-4 else f", p = {p:.4f}"
    return f"{value}{between}, n = {judged['n']}{chance}"
