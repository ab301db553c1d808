"""The cells of a notebook that judge claims, run on metric sets that a test makes up."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd

from safealign_utils import evaluate, intervals
from safealign_utils.study import claims, factorial

from . import ROOT

SEEDS = (0, 1, 2, 3)
WOBBLE = dict(zip(SEEDS, (0.012, -0.008, 0.004, -0.008)))  # of every number, from seed to seed


class Recorder:
    """A study that judges: claims as a notebook's, everything else is given or ignored."""

    def __init__(self, **given):
        self.seeds, self.metrics, self.judged, self.tolerance = list(SEEDS), {}, {}, 1e-6
        self.setups = [SimpleNamespace(seed=s, exact=SimpleNamespace(logp=s)) for s in SEEDS]
        vars(self).update(given)

    def claim(self, id, values=None, *, measured=None, **setting):
        judged = claims.judge(id, values, measured=measured, **setting)
        self.judged.setdefault(id, []).append(judged)

    def verdicts(self):
        """{id: its one verdict over all settings}."""
        ledger = claims.ledger()
        return {
            id: claims.together(ledger[id], rows)["verdict"] for id, rows in self.judged.items()
        }

    def check(self, words, passed):
        assert passed, words

    def table(self, *args, **kwargs):
        return None

    def metrics_of(self, *args):
        return None


def jitter(value, seed, salt=0):
    """A number as one seed has it: about one percent off, and never 0 where it is not."""
    return value * (1 + WOBBLE[SEEDS[(seed + salt) % len(SEEDS)]])


def rows_of(table, key, seeds=SEEDS):
    """A row a seed and setting of {setting: {quantity: mean}}; `key` names a setting's columns."""
    out = []
    for salt, (setting, quantities) in enumerate(table.items()):
        names = setting if isinstance(setting, tuple) else (setting,)
        for seed in seeds:
            numbers = {q: jitter(v, seed, salt) for q, v in quantities.items()}
            out.append(dict(zip(key, names)) | {"seed": seed} | numbers)
    return out


def cells_of(notebook, *helpers):
    """Sources of a notebook's cells that hold one of `helpers`, or judge a claim, in order."""
    path = ROOT / "notebooks" / f"{notebook}.ipynb"
    code = [c for c in json.loads(path.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    sources = ["".join(c["source"]) for c in code]
    wanted = ("study.claim(", *helpers)
    for words in wanted:
        assert any(words in source for source in sources), f"{notebook}: no cell has {words!r}"
    return [source for source in sources if any(words in source for words in wanted)]


def run(notebook, study, *helpers, **namespace):
    """Run those cells on a made-up study and the names that they use: its verdicts by claim."""
    known = dict(np=np, pd=pd, evaluate=evaluate, intervals=intervals, factorial=factorial)
    space = known | dict(study=study, settings=SimpleNamespace()) | namespace
    for source in cells_of(notebook, *helpers):
        exec(compile(source, notebook, "exec"), space)  # noqa: S102
    return study.verdicts()
