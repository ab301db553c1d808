"""What the benchmarks on trained policies share: a seed's pairs and references, methods, own optima, tables by seed."""

import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from safealign_utils import evaluate, pairs, references, train
from safealign_utils.intervals import over_seeds
from safealign_utils.methods import baselines, cdpo, dog, safedpo, selective
from safealign_utils.world import optimum

TABLES = Path(__file__).parents[2] / "notebooks" / "tables"
BETA, PAIRS, KEEP, BUDGET = 0.5, 6000, 0.4, 0.11
HEADLINE = dict(steps=200, learning_rate=3e-3)  # of the profile `full`
# The limit of a method's training, by the labels it sees: dpo_safebetter's follows as SafeDPO's does, since of
# mixed pairs it keeps those that the safe response won.
OWN = {
    **dict.fromkeys(("dpo", "dpo_soft", "selective"), "π*"),
    **dict.fromkeys(("dpo_safebetter", "safedpo", "safedpo_delta"), "π*_c"),
    **dict.fromkeys(("dog_d_safedpo", "random_safedpo"), "π*_c"),
    "cdpo_soft": "π*_λ",
}


@dataclass(frozen=True)
class Seed:
    """A seed of a world: its reference, plain (with the leak penalty) or with the grammar softmax, and its pairs."""

    world: object
    seed: int
    constrained: bool = True

    @cached_property
    def reference(self):
        policy = references.reference_policy(self.world, seed=self.seed)[0]
        return replace(policy, constrained=self.constrained)

    @cached_property
    def pairs(self):
        table = pairs.label(self.world.pairs(PAIRS, seed=self.seed))
        return table.assign(source=[self.world.prompts[i].category for i in table.prompt_id])

    def exact(self, policy, prompts):
        """All responses of a policy to some prompts (ids): an `evaluate.Exact`."""
        return evaluate.exact(policy, prompts)

    @cached_property
    def lam(self):
        """The exact multiplier of the limit 0 on the training prompts."""
        x = self.world.select("train")
        ref = self.exact(self.reference, x).logp
        return optimum.lambda_star(ref, self.world.reward[x], self.world.cost[x], beta=BETA)

    def own_optimum(self, name, ref):
        """The log-prob table of π*, π*_c or π*_λ on the prompts of `ref` (an Exact of the reference)."""
        r, c = self.world.reward[ref.prompts], self.world.cost[ref.prompts]
        if name == "π*_c":
            return optimum.safe_optimal(ref.logp, r, c, beta=BETA)
        lam = self.lam if name == "π*_λ" else 0.0
        return optimum.lagrangian_optimal(ref.logp, r, c, lam=lam, beta=BETA)

    def train(self, table, **changes):
        """A policy trained on a labelled table; `changes` go before the headline setting."""
        asked = dict(beta=BETA, batch_size=32, seed=self.seed) | HEADLINE | changes
        leak = 0.0 if self.constrained else 0.1
        tokens = pairs.tokenize(table, self.reference)
        return train.align(self.reference, tokens, leak_weight=leak, **asked).policy

    def labelled(self, method, table):
        """A table of pairs as a method labels it, the pairs that it leaves out left out."""
        return {
            "dpo": lambda: table,
            "selective": lambda: table,
            "dpo_soft": lambda: pairs.soft_label(table, table.reward_0, table.reward_1),
            "dpo_safebetter": lambda: baselines.dpo_safebetter(table),
            "safedpo": lambda: safedpo.safedpo(table),
            "safedpo_delta": lambda: safedpo.safedpo(table, delta=5.0),
            "cdpo_soft": lambda: cdpo.relabel(table, self.lam),
        }[method]()

    def trained(self, method, **changes):
        """The policy of a method. Selective-DPO asks DPO of the same setting for its scores."""
        if method in ("dog_d_safedpo", "random_safedpo"):
            return self.train(safedpo.safedpo(self._share(method)), **changes)
        table, levers = self.labelled(method, self.pairs), {}
        if method == "selective":
            score = self.train(table, **changes)
            tokens = pairs.tokenize(table, self.reference)
            offset = selective.offset(score, self.reference, tokens)
            levers["token_lever"] = selective.TopTokens(KEEP, selective.Signed(offset))
        return self.train(table, **levers, **changes)

    def _share(self, method):
        """11 % of the pairs, chosen before anyone has labelled them."""
        k = dog.budget_size(BUDGET, len(self.pairs))
        if method == "random_safedpo":
            rows = np.random.default_rng(self.seed).choice(len(self.pairs), k, replace=False)
        else:
            u = dog.directions(self.reference, pairs.tokenize(self.pairs, self.reference))
            rows = dog.dog_d(u, self.pairs.source.to_numpy(), k).rows
        return self.pairs.iloc[np.sort(rows)].reset_index(drop=True)


def ends(name, values, bounds):
    """A row's part for a quantity of seeds: its mean and the ends of its interval."""
    mean, low, high = over_seeds(values, bounds)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def collect(file, work, keys, columns):
    """Rows of every key that a CSV of rows does not have yet, written after each: the whole table.

    `work(*key)` returns a list of dicts; `columns` name the key's parts in the CSV.
    """
    table = pd.read_csv(file) if Path(file).is_file() else pd.DataFrame(columns=columns)
    done = set(table[columns].itertuples(index=False, name=None))
    for key in keys:
        if key in done:
            continue
        rows = pd.DataFrame([dict(zip(columns, key)) | row for row in work(*key)])
        table = pd.concat([table, rows], ignore_index=True) if len(table) else rows
        table.round(6).to_csv(file, index=False)
        print(*key, flush=True, file=sys.stderr)
    return pd.read_csv(file)
