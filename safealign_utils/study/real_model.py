"""A real model on answer sets: what notebook 07 holds (`real/answer_sets.py` says why it is exact).

Training reads all pairs of a prompt's answers at once. Log-probs are measured in float32, whatever
the training computes in, and every policy is held against the optimum of its own method on S.
"""

import datetime
import math
from dataclasses import replace

import numpy as np

from .. import evaluate, pairs, sampling
from ..intervals import summarise
from ..methods import selective
from ..policy import at_work
from ..real import answer_sets, labelled_sets
from ..real.models import load_policy
from ..world import optimum
from . import records
from .study import Notebook, Setup, show_template

LIVE = 1e-5  # how exactly a first loss is ln 2: the reference is read in the same batch
SPLITS = ("train", "heldout")


class RealModel(Notebook):
    """Notebook 07: one model, its answer sets, and every method trained on all pairs of S."""

    def __init__(self, name, namespace):
        super().__init__(name, namespace)
        s = self.settings
        self.tolerance = LIVE
        self.options = dict(by_prompt=True, lora=s.lora, accumulate=s.accumulate)
        self.max_length = answer_sets.ROOM
        self._policy, self._asked, self.reads, self.seconds = None, {}, {}, {}
        self.sets = self._sets()
        per_prompt = math.comb(self.sets.there.shape[1], 2)
        self.train_ids = self._choose(self.sets.select("train"), max(1, s.pairs // per_prompt))
        known = {"train": self.train_ids, "heldout": self.sets.select("heldout")}
        self.ids = {split: self._choose(ids, s.eval_size) for split, ids in known.items()}
        show_template(self._introduce().reference)
        for setup in self.setups:
            self.add("ref", setup.seed, setup.reference)
        print(f"{'run':<11}{datetime.date.today()}, {records.processor()}")

    def _sets(self):
        """The kit's own answer sets, or those of the pairs that `data` names."""
        if not self.settings.data:
            return answer_sets.load()
        return labelled_sets.from_pairs(self.settings.data, self._opened().tokenizer)

    def _choose(self, ids, n):
        """At most n prompts: the kit's evenly spread, of others as many of each kind."""
        return of_every_kind(self.sets, ids, n) if self.settings.data else _spread(ids, n)

    def _data(self, first):
        held = self.sets.select("heldout")
        apart = not {self.sets.prompts[i].topic for i in held} & set(first.train.source)
        prompts = f"{len(self.train_ids)} prompts and {len(first.train):,} pairs of answers"
        out = f"{prompts}; held out {len(held)} prompts{' of other topics' * apart}"
        return "; ".join([out, *(f"{what}: {n}" for what, n in self.sets.notes.items())])

    def _opened(self):
        if self._policy is None:
            opened = load_policy(self.settings.model, template="auto")
            self._policy = opened.to(self.settings.dtype, self.device)
        return self._policy

    def _make(self, seed):
        known = self.train_ids, self.sets.select("heldout")
        train, test = (pairs.label(self.sets.pairs(ids), "better") for ids in known)
        return Setup(seed, self._opened(), self.settings.model, train, test)

    # ------------------------------------------------------------ tables
    def every_pair(self):
        """All pairs of the training prompts, ties too, with soft labels by r."""
        table = self.sets.pairs(self.train_ids)
        return pairs.soft_label(table, table.reward_0, table.reward_1)

    # ------------------------------------------------------------ training
    def fit(self, method, setup, table, **changes):
        """Train on a table and read the policy on both splits; returns the log.

        The policy itself is not kept: it has half a GB, and the cache has it (`policy`).
        """
        self._asked[method, setup.seed] = setup, table, changes
        run = self.train(setup, table, **changes)
        self.add(method, setup.seed, run.policy)
        self.seconds[method, setup.seed] = run.seconds
        return run.log

    def policy(self, method, seed):
        """A policy of `fit`, out of the cache; "ref" is the reference."""
        if method == "ref":
            return self.setup(seed).reference
        setup, table, changes = self._asked[method, seed]
        return self.train(setup, table, **changes).policy

    def selective(self, setup):
        """Selective-DPO on the hard labels, scored by the seed's own DPO policy: its log."""
        tokens, ref = self.tokens(setup), setup.reference
        both = (p.merged().to("float32") for p in (self.policy("dpo", setup.seed), ref))
        with self.timed("evaluation"):
            offset = selective.offset(*both, tokens)
        lever = selective.TopTokens(self.settings.keep, selective.Signed(offset))
        return self.fit("selective", setup, setup.train, token_lever=lever)

    def loop(self, setup, **changes):
        """C-DPO on all pairs, its E[c] exact on S: `cdpo.Aligned`, without its policy."""
        s, table = self.settings, self.every_pair()
        ref = self.reads["ref", setup.seed, "train"].logp
        lowest = optimum.lowest_cost(self.sets.cost[self.ids["train"]], ref)
        asked = dict(rounds=s.rounds, steps=s.round_steps, dual_lr=s.dual_lr, lowest=lowest)
        run = self.cdpo(setup, table, self.mean_cost, **asked | changes)
        self.add("cdpo", setup.seed, run.policy)
        return replace(run, policy=None)

    def mean_cost(self, policy, number):
        """E[c] on S over the training prompts that are evaluated: for C-DPO's loop."""
        logp = self._on_sets(policy, "train").logp
        return optimum.expect(logp, self.sets.cost[self.ids["train"]])

    def starts_at_ln_2(self, logs):
        """Check the first loss of every training."""
        off = max(abs(log.loss[0] - math.log(2)) for log in logs)
        self.check("every first loss is ln 2, to 1e-5", off < self.tolerance)

    # ------------------------------------------------------------ exact on S
    def add(self, method, seed, policy):
        """Read a policy on both splits: `reads[method, seed, split]`."""
        for split in SPLITS:
            self.reads[method, seed, split] = self._on_sets(policy, split)

    def _on_sets(self, policy, split):
        with self.timed("evaluation"):
            return answer_sets.read(policy, self.sets, self.ids[split])

    def scores(self, split):
        """r and c [P, R] of a split's prompts."""
        return self.sets.reward[self.ids[split]], self.sets.cost[self.ids[split]]

    def optima(self, split):
        """{name: log-probs [P, R]} of the exact optima on a split: pi*, pi*_c and pi*_lambda*."""
        beta, of = self.settings.beta, (self.reads["ref", self.seeds[0], split].logp,)
        reward, cost = self.scores(split)
        return {
            "dpo": optimum.optimal(*of, reward, beta=beta),
            "safedpo": optimum.safe_optimal(*of, reward, cost, beta=beta),
            "cdpo": optimum.lagrangian_optimal(
                *of, reward, cost, lam=self.lambda_star(split), beta=beta
            ),
        }

    def lambda_star(self, split="train"):
        """The exact multiplier of the limit on a split's prompts."""
        of = dict(beta=self.settings.beta, cost_limit=self.settings.cost_limit)
        ref = self.reads["ref", self.seeds[0], split].logp
        return optimum.lambda_star(ref, *self.scores(split), **of)

    def distance(self, method, seed, split, target):
        """KL of a policy to an optimum [P, R]; the other direction where that has no mass on some
        answers."""
        logp = self.reads[method, seed, split].logp
        finite = np.isfinite(target[np.isfinite(logp)]).all()
        return optimum.kl(logp, target) if finite else optimum.kl(target, logp)

    def between(self, one, other, split="train"):
        """KL of one method to another on S, nats: one value a seed."""
        reads = [[self.reads[m, seed, split].logp for m in (one, other)] for seed in self.seeds]
        return np.array([optimum.kl(*both) for both in reads])

    def rows(self, target_of):
        """Every policy on both splits against its own optimum: rows of method, seed, split and
        quantities. `target_of` {method: name of its optimum}, "dpo" for the others."""
        exact, rows = {split: self.optima(split) for split in SPLITS}, []
        for (method, seed, split), theta in self.reads.items():
            ref = self.reads["ref", seed, split]
            target = exact[split][target_of.get(method, "dpo")]
            found = evaluate.metrics(theta, ref, self.sets, target=target)
            found.pop("leak")  # all but nothing lies outside of S, for any policy
            found["log_mass"] = float((theta.log_mass - ref.log_mass).mean())
            rows.append({"method": method, "seed": seed, "split": split, **found})
        return rows

    # ------------------------------------------------------------ answers
    def answers(self, methods, prompts, *, new_tokens=48):
        """Greedy answers of the first seed's policies to prompts: {method: texts}."""
        out = {}
        for method in methods:
            policy = self.policy(method, self.seeds[0])
            with self.timed("answers"), at_work(policy, self.device):
                asked = dict(max_tokens=new_tokens, temperature=0.0)
                out[method] = sampling.generate(policy, prompts, **asked)
        return out

    def summary(self, name, rows, keys, quantities, digits=3):
        """Record rows as a table of means over seeds with intervals; returns it for eyes."""
        table = summarise(rows, keys, quantities)
        return self.table(name, table, [*keys, *quantities], digits=digits)


def _spread(ids, n):
    """At most n of some ids, evenly spread; the last one, a risky prompt, is always among them."""
    places = np.linspace(0, len(ids) - 1, min(n, len(ids))) if n > 1 else np.array([len(ids) - 1])
    return ids[np.unique(places.round().astype(int))]


def of_every_kind(sets, ids, n):
    """At most n of some ids, in their order, and of every kind as many as far as they last; a risky
    one is always among them."""
    kinds, chosen = {}, []
    for i in ids:
        kinds.setdefault(sets.prompts[i].kind, []).append(i)
    groups = sorted(kinds.items(), key=lambda item: (item[0] != "risky", len(item[1])))
    for left, (_, group) in zip(range(len(groups), 0, -1), groups):
        if share := math.ceil((n - len(chosen)) / left):
            chosen += list(_spread(np.array(group), share))
    return np.sort(chosen)
