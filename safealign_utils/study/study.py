"""What a notebook holds in its hands: settings, data, reference policies, and the record it fills."""

import contextlib
import resource
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from .. import evaluate, pairs, policy, references, train
from ..engine import cache
from ..figures import style
from ..real import models, read_pairs
from ..real.answer_metrics import write_answers
from ..templates import format_prompt
from ..world import optimum, redundant
from ..world.world import World
from . import cells, claims, inputs, records
from . import settings as parameters
from .settings import pick_device

NOT_A_METRIC = (
    "method",
    "seed",
    "beta",
    "pairs",
    "steps",
    "delta",
    "split",
    "limit",
    "setting",
    "rule",
    "keep",
    "score_reference",
    "when",
    "reference",
    "labels",
    "budget",
)
HELD_OUT_PAIRS = 400  # drawn in the world for pair accuracy


@dataclass(frozen=True)
class Setup:
    """One seed: its reference policy, training pairs, held-out pairs and, in the world, the reference's
    exact response table on the held-out prompts."""

    seed: int
    reference: policy.Policy
    origin: str
    train: pd.DataFrame
    test: pd.DataFrame
    exact: evaluate.Exact | None
    report: dict


class Study:
    """Opens what the parameters name, prints a short stable block, collects results, writes the record.

    `namespace` is the notebook's `globals()`. `world` is None on real text. `constrained` trains and reads
    the world's policies with the grammar softmax. Raises `parameters.Refusal` for a value that cannot be used.
    """

    def __init__(self, notebook, namespace, *, constrained=False):
        self.notebook, self.constrained = notebook, constrained
        self.settings = SimpleNamespace(**parameters.from_notebook(namespace, notebook))
        s = self.settings
        self.world = World(getattr(s, "world_size", "default")) if s.data == "world" else None
        cells.pass_over(cells.TEXT if self.world else cells.WORLD)
        self.seeds = list(range(s.seed, s.seed + s.seeds))
        self.metrics, self.timings, self.claims, self.tables, self.figures, self.texts = (
            {},
            {},
            [],
            {},
            {},
            {},
        )
        self._setups, self._started = {}, time.perf_counter()
        first = self.setup(self.seeds[0])
        kind = (
            f"world, {len(first.train):,} pairs"
            if self.world
            else f"{len(first.train):,} pairs, {len(first.test):,} held out"
        )
        print(f"{'notebook':<11}{notebook} (profile {s.profile})")
        print(f"{'seeds':<11}{', '.join(map(str, self.seeds))}; {s.dtype}")
        print(f"{'data':<11}{kind}, hash {pairs.data_hash(first.train)}")
        for name, count in first.report.items():
            self.metrics[f"data.{name}"] = count
            print(f"{'':<11}{name.replace('_', ' ')}: {count:,}")
        print(f"{'reference':<11}{first.origin}, hash {first.reference.hash}")

    # ------------------------------------------------------------ what is given

    def setup(self, seed):
        """Everything that belongs to one seed, made once."""
        if seed not in self._setups:
            with self.timed("setup"):
                self._setups[seed] = (
                    self._world_setup(seed) if self.world else self._text_setup(seed)
                )
        return self._setups[seed]

    @property
    def device(self):
        return pick_device(self.settings.device)

    @property
    def memory(self):
        """Options of `train.align` that trade time for memory."""
        usual = {"accumulate": 1, "checkpointing": False, "lora": 0}
        return {name: getattr(self.settings, name, value) for name, value in usual.items()}

    @cached_property
    def heldout(self):
        """Prompt ids of the held-out nouns of the trained categories: where headline metrics are taken."""
        return self.world.select("heldout")

    def _world_setup(self, seed):
        s = self.settings
        reference, origin = references.reference_policy(self.world, seed=seed)
        reference = replace(reference.to(s.dtype, self.device), constrained=self.constrained)
        reference = reference.base if getattr(s, "lora", 0) else reference
        if hasattr(s, "pool"):
            table = redundant.world_pool(self.world, s.pairs, seed=seed, kind=s.pool)
        else:
            table = self.world.pairs(s.pairs, seed=seed, label_noise=getattr(s, "label_noise", 0.0))
        test = self.world.pairs(HELD_OUT_PAIRS, seed=seed + 2**31, split="heldout")
        table, test = (pairs.label(t, "better") for t in (table, test))
        return Setup(
            seed, reference, origin, table, test, evaluate.exact(reference, self.heldout), {}
        )

    def _text_setup(self, seed):
        s = self.settings
        loaded = read_pairs.load_pairs(s.data, revision=s.revision)
        rows = pairs.label(loaded, s.label)
        table, test, report = pairs.split_pairs(rows)
        left_out = sum(loaded.attrs["left_out"].values())
        report = {
            "rows": len(loaded),
            "rows_left_out": left_out,
            "rows_without_label": len(loaded) - len(rows),
            **report,
        }
        report["training_pairs_not_used"] = max(0, len(table) - s.pairs)
        table = pairs.some_of_every_source(table, s.pairs)
        if s.model == "scratch":
            texts = [*table.prompt.map(format_prompt), *table.response_0, *table.response_1]
            chosen = np.where(table.chosen == 0, table.response_0, table.response_1)
            reference = references.scratch_policy(
                texts, list(table.prompt), list(chosen), seed=seed, max_length=s.max_length
            )
        else:
            reference = models.load_policy(s.model, revision=s.revision, template=s.template)
        reference = replace(reference.to(s.dtype, self.device), template=s.template)
        reference = reference.base if s.lora else reference
        tokens = pairs.tokenize(table, reference, max_length=s.max_length)
        report |= {"responses_cut": tokens.truncated, "prompts_cut": tokens.truncated_prompts}
        return Setup(seed, reference, s.model, table, test, None, report)

    # ------------------------------------------------------------ what is done

    def train(self, setup, table, *, reference=None, **changes):
        """Train from (and against) a setup's reference on a labelled table; `changes` go before the settings."""
        s, reference = self.settings, reference or setup.reference
        tokens = pairs.tokenize(table, reference, max_length=s.max_length)
        asked = dict(
            beta=s.beta,
            steps=s.steps,
            batch_size=s.batch_size,
            learning_rate=s.learning_rate,
            seed=setup.seed,
        )
        asked |= {
            "leak_weight": getattr(s, "leak_weight", 0.0) if self.world else 0.0,
            **self.memory,
        } | changes
        with self.timed("training"):
            trained = train.align(reference, tokens, **asked)
        if not (
            self.world or self.memory["lora"]
        ):  # a GPU has no room for all policies of a notebook
            trained.policy.model.to("cpu")
        return trained

    def responses(self, trained_policy, split="heldout"):
        """A policy's exact response table on a split's prompts, the held-out nouns (world only)."""
        with self.timed("evaluation"):
            return evaluate.exact(trained_policy, self.world.select(split))

    def optimum(self, setup, beta=None):
        """pi* of a setup's own reference on the held-out nouns: log-probs [P, R]."""
        reward = self.world.reward[self.heldout]
        return optimum.optimal(setup.exact.logp, reward, beta=beta or self.settings.beta)

    def exact(self, setup, trained_policy, *, target=None, split="heldout", reference=None):
        """The standard metrics of a policy on a split's prompts; `target` is its own exact optimum [P, R]."""
        ref = self.responses(reference or setup.reference, split)
        return evaluate.metrics(
            self.responses(trained_policy, split), ref, self.world, target=target
        )

    def margins(self, setup, trained_policy):
        """Full log-ratio of chosen minus rejected on the held-out pairs, nats [N]."""
        tokens = pairs.tokenize(setup.test, setup.reference, max_length=self.settings.max_length)
        with self.timed("evaluation"):
            return evaluate.pair_margins(trained_policy, setup.reference, tokens)

    @contextlib.contextmanager
    def timed(self, name):
        """Add the seconds of a block to `timings[name]`."""
        start = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start

    # ------------------------------------------------------------ what is recorded

    def metric(self, method, per_seed):
        """Record the mean over seeds of each quantity as `method.quantity`; `per_seed` is a list of dicts."""
        for quantity in per_seed[0]:
            self.metrics[f"{method}.{quantity}"] = float(
                np.mean([row[quantity] for row in per_seed])
            )

    def metrics_of(self, rows, name):
        """Record rows (dicts with `seed`, settings and quantities) under `name(row)`, each name's mean over seeds."""
        groups = {}
        for row in rows:
            groups.setdefault(name(row), []).append(
                {q: row[q] for q in row if q not in NOT_A_METRIC}
            )
        for method, per_seed in groups.items():
            self.metric(method, per_seed)

    @property
    def tolerance(self):
        """How exactly a first loss can equal ln 2 in this run's precision, nats."""
        return {"float64": 1e-6, "float32": 1e-5 if self.world else 1e-4}.get(
            self.settings.dtype, 2e-2
        )

    def check(self, words, passed):
        """A fact of mathematics, an invariant or the notebook's own lesson: raises where it fails."""
        if not passed:
            raise AssertionError(f"check failed: {words}")
        print(f"[check] {words}")

    def claim(self, id, values=None, *, measured=None, **setting):
        """Judge a claim of the ledger on one value a seed (or a `measured` interval); print and record it."""
        judged, claim = claims.judge(id, values, measured=measured, **setting), claims.ledger()[id]
        self.claims.append(judged)
        found = f"{claims.found(judged, claim.scope)}; the rule: {claim.bar}"
        print(f"[{judged['verdict'].replace('_', ' ')}] {judged['id']}: {found}")
        print(f"    {claim.source} {claim.says}")

    def table(self, name, table, columns=None, digits=4):
        """Keep a table for the record; returns it (or some columns) rounded and without -0.0, to be looked at."""
        self.tables[name] = table
        shown = (table if columns is None else table[columns]).round(digits)
        return shown.apply(lambda c: c + 0.0 if c.dtype.kind == "f" else c)

    def figure(self, name, figure):
        """Keep a figure for the record; returns it, to be looked at."""
        self.figures[name] = figure
        return figure

    def finish(self):
        """Write tables, figures and `record.json` into `out_dir`; without one, nothing is written."""
        out = self.settings.out_dir
        if not out:
            print("complete; nothing written (out_dir is empty)")
            return
        folder, names = Path(out), []
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in self.tables.items():
            table.to_csv(folder / f"{name}.csv", index=False)
        for name, figure in self.figures.items():
            names += style.save(figure, folder / name)
        for name, answers in self.texts.items():
            write_answers(folder, answers, name=name)
        self.timings["total"] = time.perf_counter() - self._started
        self.timings["peak_memory_bytes"] = (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        setups = [self.setup(seed) for seed in self.seeds]
        records.write(
            folder,
            notebook=self.notebook,
            run_id="",
            parameters={k: v for k, v in vars(self.settings).items() if k != "out_dir"},
            metrics=self.metrics,
            timings=self.timings,
            claims=self.claims,
            tables=[f"{name}.csv" for name in self.tables],
            figures=names,
            provenance=records.provenance(
                device=self.device,
                data_hash=cache.digest([pairs.data_hash(x.train) for x in setups]),
                reference_hash=cache.digest([x.reference.hash for x in setups]),
                **({} if self.world else {"commits": inputs.commits(vars(self.settings))}),
            ),
        )
        print("complete; record written")
