"""C-DPO (Liu, Sun, Zheng, arXiv 2403.02475): E[r] - beta KL with E[c] <= cost_limit, by its dual.

It moves one lever of the one loss, the *winner*: at a multiplier lambda >= 0 the pair is labelled
by r - lambda c. Around it a loop moves lambda by the constraint's violation until E[c] meets the
limit. The sources at hand do not state the step size, the rounds, where a round starts from and how
E[c] is estimated: the first two and the last are arguments here, and a round starts from the last.
"""

import sys
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..engine import distributed
from ..engine.streams import generator
from ..evaluate import exact
from ..pairs import chosen_rejected, soft_label, tokenize
from ..policy import Policy
from ..sampling import draw, generate
from ..train import align
from ..world import optimum

RELABEL = ("soft", "coin", "argmax")
AVERAGE = 3  # the last multipliers, whose mean gets the last fit
MET = 0.02  # of the largest violation: a limit overstepped by less counts as met


# ---------------------------------------------------------------- the winner lever
def score(table, *, reward, cost):
    """Add the columns reward_k and cost_k from two scorers: (prompts, responses) -> float [N].

    Raises ValueError where a scorer returns another shape or a number that is not finite.
    """
    out, n = {}, len(table)
    for name, scorer in (("reward", reward), ("cost", cost)):
        for k in (0, 1):
            values = scorer(list(table.prompt), list(table[f"response_{k}"]))
            values = np.asarray(values, dtype=float)
            if values.shape != (n,) or not np.isfinite(values).all():
                raise ValueError(
                    f"{name}: the scorer must return {n} finite numbers, one a response"
                )
            out[f"{name}_{k}"] = values
    return table.assign(**out)


def relabel(table, lam, *, by="soft", seed=0):
    """Winners by r - lambda c, from the columns reward_k and cost_k of the table.

    `by` "coin": Bernoulli(sigma of the gap) with one uniform number per pair, the same for every
    lambda (common random numbers); "argmax": the higher score; "soft": the probability itself, no
    draw at all. *Differs from the paper:* no source at hand says whether it draws or takes the
    larger; "soft" is ours, and the default because it ends nearest to the optimum (notebook 03).
    """
    if by not in RELABEL:
        raise ValueError(f"relabel={by!r}: choose one of {', '.join(RELABEL)}")
    if not 0 <= lam < np.inf:
        raise ValueError(f"lam={lam}: the multiplier of a constraint is a number, 0 or above")
    table = soft_label(table, *(table[f"reward_{k}"] - lam * table[f"cost_{k}"] for k in (0, 1)))
    if by == "argmax":
        return table.assign(p=1.0)
    if by == "coin":
        first = chosen_rejected(table, table.p, 1 - table.p)[0]  # probability that response 0 wins
        u = generator(seed, "coin flips").random(len(table))
        return table.assign(chosen=np.where(u < first, 0, 1), p=1.0)
    return table


# ---------------------------------------------------------------- E[c] of a policy
@dataclass(frozen=True)
class ExactCost:
    """E[c] by enumeration, mean over the given prompts (ids) of the world, in every round."""

    prompts: tuple

    def __call__(self, policy, number):
        cost = policy.grammar.world.cost[list(self.prompts)]
        return optimum.expect(exact(policy, self.prompts).logp, cost)


@dataclass(frozen=True)
class SampledCost:
    """E[c] from `samples` sampled responses, scored by `cost`: (prompts, responses) -> float [N].

    `prompts` are texts, taken in a shuffled turn that goes on from round to round (`number`); every
    round has uniform numbers of its own.
    """

    prompts: tuple
    cost: object
    samples: int
    seed: int = 0
    max_tokens: int = 64

    def __call__(self, policy, number):
        order = generator(self.seed, "prompts of the cost").permutation(len(self.prompts))
        turn = number * self.samples + np.arange(self.samples)
        prompts = [self.prompts[i] for i in order[turn % len(order)]]
        if policy.grammar is None:  # in batches, each of them cached
            seed = self.seed + 2**20 * number
            texts = generate(policy, prompts, max_tokens=self.max_tokens, seed=seed)
        else:
            numbers = generator(self.seed, "samples of the cost", number)
            texts = draw(policy, prompts, numbers.random((self.samples, self.max_tokens))).texts
        return float(np.mean(self.cost(prompts, texts)))


# ---------------------------------------------------------------- the dual loop
@dataclass(frozen=True)
class DualDescent:
    """How lambda is found: `rounds` steps of size `dual_lr` from 0, labels `by` (see `relabel`).

    `lowest` is the lowest attainable E[c], where it is known: a limit at or below it is refused.
    Raises ValueError for that, and for values out of range.
    """

    cost_limit: float
    rounds: int
    dual_lr: float = 0.5
    by: str = "soft"
    lowest: float | None = None

    def __post_init__(self):
        optimum.check_limit(self.cost_limit, self.lowest)
        if not 0 < self.dual_lr < np.inf:
            raise ValueError(f"dual_lr={self.dual_lr}: a finite number above 0")
        if self.rounds < 1:
            raise ValueError(f"rounds={self.rounds}: a whole number, 1 or above")


@dataclass(frozen=True)
class Aligned:
    """What the loop ends with.

    `rounds` has one row a fit (round, lam, cost, dual_lr), the last one at the averaged multiplier
    `lam`; `seconds` are those of the trainings; `warning` is empty where none is due.
    """

    policy: Policy
    lam: float
    rounds: pd.DataFrame
    seconds: float
    warning: str = ""


def dual_step(lam, cost, cost_limit, dual_lr):
    """One projected step of dual descent: lambda <- [lambda + dual_lr (E[c] - cost_limit)]_+."""
    return max(0.0, lam + dual_lr * (cost - cost_limit))


def cdpo(reference, table, cost_of, dual, *, seed, max_length=256, **training):
    """Dual descent (`dual`, a `DualDescent`) around DPO on labels by r - lambda c: an `Aligned`.

    Each round relabels, trains from the last policy (`training`: beta and the rest of
    `train.align`; `max_length` as in `pairs.tokenize`), measures E[c] with
    `cost_of(policy, number)` and moves lambda. After the last round, or once lambda stands still
    twice, the mean of the last three multipliers (0 if the last one is 0) gets a last fit of its
    own. Where the lowest attainable E[c] is not known and lambda still rises in the last rounds,
    that is printed to stderr and is the result's `warning`.

    *Differs from the paper:* averaging, the stop rule and soft labels are ours.
    """

    def fit(start, lam, number):
        labelled = relabel(table, lam, by=dual.by, seed=seed)
        tokens = tokenize(labelled, reference, max_length=max_length)
        run = align(reference, tokens, start=start, seed=seed + 2**20 * number, **training)
        return run, _measured(cost_of, run.policy, number)

    policy, lam, rows, seconds = reference, 0.0, [], 0.0
    for number in range(1, dual.rounds + 1):
        run, cost = fit(policy, lam, number)
        policy, seconds = run.policy, seconds + run.seconds
        rows.append({"round": number, "lam": lam, "cost": cost, "dual_lr": dual.dual_lr})
        lam = dual_step(lam, cost, dual.cost_limit, dual.dual_lr)
        if [row["lam"] for row in rows[-2:]] == [lam, lam]:  # once: it may not have moved yet
            break
    warning = still_rising(rows, lam, dual.cost_limit) if dual.lowest is None else ""
    if warning:
        print(warning, file=sys.stderr)
    if lam > 0:  # at 0 the limit is slack, and what came before is no estimate
        lam = float(np.mean([*(row["lam"] for row in rows[1:]), lam][-AVERAGE:]))
    run, cost = fit(policy, lam, dual.rounds + 1)
    rows.append({"round": len(rows) + 1, "lam": lam, "cost": cost, "dual_lr": 0.0})
    return Aligned(run.policy, lam, pd.DataFrame(rows), seconds + run.seconds, warning)


def _measured(cost_of, policy, number):
    """E[c] of a policy after round `number`, the same on every process."""
    cost = distributed.agree(cost_of(policy, number))
    if not np.isfinite(cost):
        raise ValueError(
            f"cost_of: E[c] is {cost} in round {number}; the cost scorer must return finite numbers"
        )
    return cost


def still_rising(rows, lam, cost_limit):
    """What to say where each of the last rounds overstepped the limit, so lambda rises; else "".

    `rows` are the rounds (dicts with lam and cost), `lam` is the multiplier after the last. The
    mean of multipliers that only rise is too low.
    """
    over = np.array([row["cost"] for row in rows]) - cost_limit
    if over[-AVERAGE:].min() <= max(0.0, MET * over.max()):
        return ""
    last = [f"{v:.4g}" for v in [*(row["lam"] for row in rows), lam][-AVERAGE - 1 :]]
    return (
        f"C-DPO: lambda still rises after {len(rows)} rounds ({', '.join(last)}), and E[c] is "
        f"{rows[-1]['cost']:.4g} at cost_limit={cost_limit:g}: the mean of the last multipliers is "
        "too low. Give more rounds or a larger dual_lr; or the limit lies below what is attainable"
    )
