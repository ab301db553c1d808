"""What a notebook holds: its settings, what belongs to each seed, and the record that it fills.

`Notebook` is common to all; `Study` is the made world, `real_text.OwnPairs` real pairs.
"""

import contextlib
import functools
import resource
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from .. import evaluate, pairs, policy, references, train
from ..engine import cache
from ..engine.torch_setup import freeze_imports
from ..figures import style
from ..methods import cdpo, ppo
from ..templates import check_template, outline
from ..world import optimum, redundant
from ..world.world import World
from . import answers, by_hand, claims, records
from . import settings as parameters
from .settings import pick_device

NOT_A_METRIC = (
    "method seed beta pairs steps delta split limit setting rule keep score_reference when "
    "reference labels budget".split()
)
HELD_OUT_PAIRS = 400  # drawn in the world for pair accuracy
PPO_RATE = 1e-3  # learning rate of PPO-Lagrangian in the world


@dataclass(frozen=True)
class Setup:
    """One seed: reference policy, where it is from, training and held-out pairs; in the world also
    the reference's exact response table on the held-out prompts.
    """

    seed: int
    reference: policy.Policy
    origin: str
    train: pd.DataFrame
    test: pd.DataFrame
    exact: evaluate.Exact | None = None


class Notebook:
    """Settings, one `Setup` a seed, and the results that go into the record.

    `namespace` is the notebook's `globals()`. A subclass makes the setups (`_make`) and says what
    they have in common (`_data`). Raises `parameters.Refusal` for a value that cannot be used.
    """

    tolerances = {"float64": 1e-6, "float32": 1e-5}
    options = {}  # of every training: the subclass's own
    judged_before = {}  # verdicts of committed runs of the same kind of data: the subclass's own

    def __init__(self, name, namespace):
        freeze_imports()
        self.name = name
        self.settings = SimpleNamespace(**parameters.from_notebook(namespace, name))
        self.seeds = list(range(self.settings.seed, self.settings.seed + self.settings.seeds))
        self.metrics, self.timings, self.claims, self.tables, self.figures = {}, {}, [], {}, {}
        self._setups, self._started = {}, time.perf_counter()
        self.device = pick_device(self.settings.device)
        # tokens of prompt and response; how exactly a first loss equals ln 2 in this dtype, nats
        self.max_length = getattr(self.settings, "max_length", 256)
        self.tolerance = self.tolerances.get(self.settings.dtype, 2e-2)

    def _introduce(self):
        first = self.setup(self.seeds[0])
        print(f"{'notebook':<11}{self.name} (profile {self.settings.profile})")
        print(f"{'seeds':<11}{', '.join(map(str, self.seeds))}; {self.settings.dtype}")
        print(f"{'data':<11}{self._data(first)}, hash {pairs.data_hash(first.train)}")
        s = self.settings
        rate = f"peak rate {s.learning_rate:g}, beta {s.beta:g}"
        print(f"{'training':<11}{s.steps} steps of {s.batch_size} pairs, {rate}")
        return first

    def setup(self, seed):
        """Everything that belongs to one seed, made once."""
        if seed not in self._setups:
            with self.timed("setup"):
                self._setups[seed] = self._make(seed)
        return self._setups[seed]

    @property
    def setups(self):
        """The setup of every seed, in order."""
        return [self.setup(seed) for seed in self.seeds]

    def tokens(self, setup, table=None, reference=None):
        """A labelled table (the setup's training pairs) as the reference's `TokenPairs`."""
        table = setup.train if table is None else table
        return pairs.tokenize(table, reference or setup.reference, max_length=self.max_length)

    def train(self, setup, table, *, reference=None, **changes):
        """Train from (and against) a setup's reference on a labelled table: a `Trained`.

        `changes` go before the settings.
        """
        s, reference = self.settings, reference or setup.reference
        asked = dict(beta=s.beta, steps=s.steps, batch_size=s.batch_size, seed=setup.seed)
        asked |= dict(learning_rate=s.learning_rate) | self.options | changes
        with self.timed("training"):
            tokens = self.tokens(setup, table, reference)
            return self._put_away(train.align(reference, tokens, **asked))

    def cdpo(self, setup, table, cost_of, **changes):
        """C-DPO's loop on a scored table, at the limit of the settings.

        `changes` are fields of `cdpo.DualDescent`, and go before the settings of every training.
        """
        s, names = self.settings, [field.name for field in fields(cdpo.DualDescent)]
        dual = dict(cost_limit=s.cost_limit)
        dual |= {name: changes.pop(name) for name in names if name in changes}
        asked = dict(beta=s.beta, batch_size=s.batch_size, learning_rate=s.learning_rate)
        asked |= dict(seed=setup.seed, max_length=self.max_length) | self.options | changes
        with self.timed("training"):
            descent = cdpo.DualDescent(**dual)
            return self._put_away(cdpo.cdpo(setup.reference, table, cost_of, descent, **asked))

    def _put_away(self, run):
        """A GPU has no room for all policies of real text; adapters share their base."""
        if self.options.get("lora") == 0:
            run.policy.model.to("cpu")
        return run

    def margins(self, setup, trained_policy, table=None):
        """Full log-ratio of chosen minus rejected on the held-out pairs (or a table), nats [N]."""
        tokens = self.tokens(setup, setup.test if table is None else table)
        with self.timed("evaluation"):
            return evaluate.pair_margins(trained_policy, setup.reference, tokens)

    @contextlib.contextmanager
    def timed(self, name):
        """Add the seconds of a block to `timings[name]`."""
        start = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start

    def metric(self, method, per_seed):
        """Record each quantity's mean over seeds as `method.quantity`: a list of dicts."""
        for quantity in per_seed[0]:
            values = [row[quantity] for row in per_seed]
            self.metrics[f"{method}.{quantity}"] = float(np.mean(values))

    def metrics_of(self, rows, name):
        """Record rows (dicts of seed, settings, quantities): each `name(row)`'s mean over seeds."""
        groups = {}
        for row in rows:
            numbers = {q: row[q] for q in row if q not in NOT_A_METRIC}
            groups.setdefault(name(row), []).append(numbers)
        for method, per_seed in groups.items():
            self.metric(method, per_seed)

    def check(self, words, passed):
        """A fact of mathematics, an invariant or the notebook's own lesson: raises if it fails."""
        if not passed:
            raise AssertionError(f"check failed: {words}")
        print(f"[check] {words}")

    def claim(self, id, values=None, *, measured=None, **setting):
        """Judge a claim of the ledger on one value a seed (or a `measured` interval); record it.

        One seed decides nothing statistical: then what is printed is the verdict of the committed
        runs of `full`, where they have one at the same setting, and this run's value beside it. The
        record has this run's verdict alone.
        """
        judged, claim = claims.judge(id, values, measured=measured, **setting), claims.ledger()[id]
        self.claims.append(judged)
        verdict, found = judged["verdict"], claims.found(judged, claim.scope)
        known = self.judged_before.get(judged["id"])
        if known and judged["n"] == 1 and verdict == "undecided":
            verdict, here = known["verdict"], found.partition(",")[0]
            committed = claims.found(known, claim.scope)
            found = f"full runs: {committed} ({known['seeds']})\n    this page: {here}"
        print(f"[{verdict.replace('_', ' ')}] {judged['id']}: {claim.bar}")
        print(*answers.lines(f"{claim.source} {claim.says}", indent=4), sep="\n")
        print(f"    {found}")

    def table(self, name, table, columns=None, digits=4):
        """Record a table; returns it (or some columns) rounded, without -0.0, to be looked at.

        An interval that is no wider than its value, as over one seed, is recorded and not shown.
        """
        if table is None:
            return None
        self.tables[name] = table
        shown = table if columns is None else table[columns]
        shown = shown.drop(columns=_points(table), errors="ignore")
        return shown.round(digits).apply(lambda c: c + 0.0 if c.dtype.kind == "f" else c)

    def figure(self, name, figure):
        """Record a figure; returns it, to be looked at."""
        self.figures[name] = figure
        return figure

    def finish(self):
        """Write tables, figures and `record.json` into `out_dir`; nothing without one."""
        if not self.settings.out_dir:
            print("complete; nothing written (out_dir is empty)")
            return
        folder = Path(self.settings.out_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._write(folder)
        print("complete; record written")

    def _write(self, folder):
        for name, table in self.tables.items():
            table.to_csv(folder / f"{name}.csv", index=False)
        figures = [style.save(figure, folder / name) for name, figure in self.figures.items()]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.timings["total"] = time.perf_counter() - self._started
        self.timings["peak_memory_bytes"] = peak
        parts = {name: getattr(self, name) for name in ("metrics", "timings", "claims")}
        parts["parameters"] = {k: v for k, v in vars(self.settings).items() if k != "out_dir"}
        parts["tables"] = [f"{name}.csv" for name in self.tables]
        parts["figures"] = [name for both in figures for name in both]
        parts["provenance"] = self._provenance()
        records.write(folder, notebook=self.name, run_id="", **parts)

    def _provenance(self, **more):
        return records.provenance(
            device=self.device,
            data_hash=cache.digest([pairs.data_hash(x.train) for x in self.setups]),
            reference_hash=cache.digest([x.reference.hash for x in self.setups]),
            **more,
        )


def _points(table):
    """The columns `x_low` and `x_high` of a table whose intervals are all the value `x` itself."""
    out = []
    for quantity in table.columns:
        ends = [f"{quantity}_low", f"{quantity}_high"]
        if set(ends) <= set(table.columns):
            same = table[ends].eq(table[quantity], axis=0).all(axis=None)
            out += ends if same else []
    return out


def show_template(policy):
    """Print what a chat template writes around prompt and response: a default system prompt too."""
    if check_template(policy.tokenizer, policy.template) == "chat":
        print(f"{'template':<11}chat, {outline(policy.tokenizer, policy.template)!r}")


class Study(Notebook):
    """A notebook on the made world, where every response can be enumerated.

    `constrained` trains and reads the policies with the grammar softmax.
    """

    def __init__(self, name, namespace, *, constrained=False):
        super().__init__(name, namespace)
        self.constrained = constrained
        self.options = {"leak_weight": getattr(self.settings, "leak_weight", 0.0)}
        self.world = World(getattr(self.settings, "world_size", "default"))
        self.heldout = self.world.select("heldout")  # prompt ids, where metrics are taken
        first = self._introduce()
        print(f"{'reference':<11}{first.origin}, hash {first.reference.hash}")
        self._say_what_it_ranges_over()

    def _say_what_it_ranges_over(self):
        words = "the words that the grammar allows" if self.constrained else "all words"
        if not self.constrained and hasattr(self.settings, "leak_weight"):
            words += f", leak penalty {self.settings.leak_weight:g}"
        print(f"{'softmax':<11}over {words}")

    @functools.cached_property
    def judged_before(self):
        """Verdicts of the committed runs at `full`; read when the first claim is judged."""
        return records.committed_verdicts({id: claim.bar for id, claim in claims.ledger().items()})

    def _data(self, first):
        return f"world, {len(first.train):,} pairs"

    def _make(self, seed):
        s = self.settings
        reference, origin = references.reference_policy(self.world, seed=seed)
        reference = replace(reference.to(s.dtype, self.device), constrained=self.constrained)
        if hasattr(s, "pool"):
            table = redundant.world_pool(self.world, s.pairs, seed=seed, kind=s.pool)
        else:
            table = self.world.pairs(s.pairs, seed=seed, label_noise=getattr(s, "label_noise", 0.0))
        test = self.world.pairs(HELD_OUT_PAIRS, seed=seed + 2**31, split="heldout")
        table, test = (pairs.label(t, "better") for t in (table, test))
        exact = evaluate.exact(reference, self.heldout)
        return Setup(seed, reference, origin, table, test, exact)

    def ppo(self, setup, *, cost_limit=0.0, **kl):
        """PPO-Lagrangian on the training prompts; `kl` is beta, or kl_coeff."""
        scorers = {kind: self.world.scorer(kind) for kind in ("reward", "cost")}
        asked = dict(cost_limit=cost_limit, seed=setup.seed, learning_rate=PPO_RATE, **kl)
        asked["iterations"] = self.settings.ppo_iterations
        prompts = self.world.select("train")
        return ppo.ppo_lagrangian(setup.reference, prompts, **scorers, **asked)

    def responses(self, trained_policy, split="heldout"):
        """A policy's exact response table on a split's prompts, the held-out nouns."""
        with self.timed("evaluation"):
            return evaluate.exact(trained_policy, self.world.select(split))

    def answers(self, policies):
        """Print what policies answer to three held-out prompts: benign, borderline and risky.

        `policies` is {name: a policy, or log-probs [P, R] on the held-out nouns}; see
        `study/answers.py`.
        """
        at = np.searchsorted(self.heldout, answers.three_prompts(self.world))
        with self.timed("evaluation"):
            shown = {k: p[at] if isinstance(p, np.ndarray) else p for k, p in policies.items()}
            answers.show(self.world, shown)

    def by_hand(self, setup, *sliders, **values):
        """The exact optimum of the risky held-out prompt, with sliders: see `study/by_hand.py`."""
        x = answers.three_prompts(self.world)[-1]
        logp = setup.exact.logp[np.searchsorted(self.heldout, x)]
        texts = [self.world.text(x, y) for y in range(len(logp))]
        asked = dict(prompt=self.world.prompts[x].text, sliders=sliders)
        asked |= {"beta": self.settings.beta} | values
        return by_hand.by_hand(logp, self.world.reward[x], self.world.cost[x], texts, **asked)

    def optimum(self, setup, beta=None):
        """pi* of a setup's own reference on the held-out nouns: log-probs [P, R]."""
        reward, beta = self.world.reward[self.heldout], beta or self.settings.beta
        return optimum.optimal(setup.exact.logp, reward, beta=beta)

    def exact(self, setup, trained_policy, *, target=None, split="heldout", reference=None):
        """A policy's standard metrics on a split's prompts; `target`: its own optimum [P, R]."""
        policies = trained_policy, reference or setup.reference
        theta, ref = (self.responses(policy, split) for policy in policies)
        return evaluate.metrics(theta, ref, self.world, target=target)
