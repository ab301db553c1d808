"""C-DPO (Liu, Sun, Zheng, arXiv 2403.02475): E[r] - beta KL with E[c] <= cost_limit, by dual gradient descent.

It moves one lever of the one loss, the *winner*: at a multiplier lambda >= 0 the pair is labelled by
r - lambda c. Around it a loop moves lambda by the constraint's violation until E[c] meets the limit.
The step size, its decay, the rounds, the warm start and how E[c] is estimated are not stated in the
sources at hand; they are arguments here.
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
MET = 0.02  # of the largest violation: a limit overstepped by less counts as met


# ---------------------------------------------------------------- the winner lever
def score(table, *, reward, cost):
    """Add the columns reward_k and cost_k from two scorers: functions (prompts, responses) -> float [N].

    Raises ValueError where a scorer returns another shape or a number that is not finite.
    """
    out = {}
    for name, scorer in (("reward", reward), ("cost", cost)):
        for k in (0, 1):
            values = np.asarray(
                scorer(list(table.prompt), list(table[f"response_{k}"])), dtype=float
            )
            if values.shape != (len(table),) or not np.isfinite(values).all():
                raise ValueError(
                    f"{name}: the scorer must return {len(table)} finite numbers, one a response"
                )
            out[f"{name}_{k}"] = values
    return table.assign(**out)


def relabel(table, lam, *, by="soft", seed=0):
    """Winners by r - lambda c, from the columns reward_k and cost_k of the table.

    `by` "coin": Bernoulli(sigma of the gap) with one uniform number per pair, the same for every lambda
    (common random numbers); "argmax": the higher score; "soft": the probability itself, no draw at all.
    *Differs from the paper:* no source at hand says whether it draws or takes the larger; "soft" is ours, and the
    default because it ends nearest to the optimum (notebook 03).
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


# ---------------------------------------------------------------- the dual loop
def dual_step(lam, cost, cost_limit, dual_lr):
    """One projected step of dual descent: lambda <- [lambda + dual_lr (E[c] - cost_limit)]_+."""
    return max(0.0, lam + dual_lr * (cost - cost_limit))


@dataclass(frozen=True)
class ExactCost:
    """E[c] of a policy by enumeration, mean over the given prompts of the world, the same in every round."""

    prompts: tuple

    def __call__(self, policy, number):
        return optimum.expect(
            exact(policy, self.prompts).logp, policy.grammar.world.cost[list(self.prompts)]
        )


@dataclass(frozen=True)
class SampledCost:
    """E[c] of a policy from `samples` sampled responses, scored by `cost`: (prompts, responses) -> float [N].

    `prompts` are texts, taken in a shuffled turn that goes on from round to round (`number`); every round has
    uniform numbers of its own.
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
        if policy.grammar is None:  # in batches, each kept on disk
            texts = generate(
                policy, prompts, max_tokens=self.max_tokens, seed=self.seed + 2**20 * number
            )
        else:
            numbers = generator(self.seed, "samples of the cost", number)
            u = numbers.random((self.samples, self.max_tokens))
            texts = draw(policy, prompts, u).texts
        return float(np.mean(self.cost(prompts, texts)))


@dataclass(frozen=True)
class Aligned:
    """What the loop ends with: the policy, its multiplier, one row a fit (round, lam, cost, dual_lr; the last one
    is the fit at the averaged multiplier), the seconds of its trainings, and a `warning`, empty
    where none is due."""

    policy: Policy
    lam: float
    rounds: pd.DataFrame
    seconds: float
    warning: str = ""


def still_rising(rows, lam, cost_limit, *, average, tolerance=0.0):
    """What to say where each of the last `average` rounds overstepped the limit, so that lambda
    still rises; else "".

    `rows` are the rounds (dicts with lam and cost), `lam` is the multiplier after the last. The
    mean of multipliers that only rise is too low.
    """
    over = np.array([row["cost"] for row in rows]) - cost_limit
    if over[-average:].min() <= max(tolerance, MET * over.max()):
        return ""
    last = ", ".join(f"{v:.4g}" for v in [*(row["lam"] for row in rows), lam][-average - 1 :])
    return (
        f"C-DPO: lambda still rises after {len(rows)} rounds ({last}), and E[c] is {rows[-1]['cost']:.4g} at "
        f"cost_limit={cost_limit:g}: the mean of the last multipliers is too low. Give more rounds or a larger "
        "dual_lr; or the limit lies below what is attainable"
    )


def cdpo(
    reference,
    table,
    cost_of,
    *,
    cost_limit,
    beta,
    rounds,
    steps,
    batch_size,
    learning_rate,
    seed,
    dual_lr=0.5,
    decay=0.0,
    lam=0.0,
    by="soft",
    warm_start=True,
    average=3,
    tolerance=0.0,
    lowest=None,
    max_length=256,
    **training,
):
    """Dual gradient descent around DPO on labels by r - lambda c; returns an `Aligned`.

    Each round relabels, trains `steps` (from the last policy, or from the reference with
    `warm_start=False`), measures E[c] with `cost_of(policy, number)` and moves lambda by
    dual_lr / number**decay. After `rounds` of it, or once lambda and E[c] both stand still within
    `tolerance` (or lambda at 0) for two rounds, the mean of the last `average` multipliers (0 if the last
    one is 0) gets a last fit of its own.
    `lowest` is the lowest attainable E[c], where it is known: a limit at or below it is refused
    first. Where it is not, and lambda still rises in the last rounds, that is printed to stderr and
    is the result's `warning`.

    *Differs from the paper:* averaging, the stop rule and soft labels are ours; what is not stated there is
    an argument here.
    """
    optimum.check_limit(cost_limit, lowest)
    for name, value, good in (
        ("dual_lr", dual_lr, 0 < dual_lr < np.inf),
        ("rounds", rounds, rounds >= 1),
        ("lam", lam, 0 <= lam < np.inf),
        ("average", average, average >= 1),
        ("decay", decay, 0 <= decay <= 1),
    ):
        if not good:
            raise ValueError(f"{name}={value}: out of range; see the docstring of cdpo")
    policy, rows, seconds, calm = reference, [], 0.0, 0

    def fit(at, number):
        nonlocal seconds
        labelled = tokenize(relabel(table, at, by=by, seed=seed), reference, max_length=max_length)
        start = policy if warm_start else reference
        run = align(
            reference,
            labelled,
            start=start,
            beta=beta,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed + 2**20 * number,
            **training,
        )
        seconds, cost = seconds + run.seconds, distributed.agree(cost_of(run.policy, number))
        if not np.isfinite(cost):
            raise ValueError(
                f"cost_of: E[c] is {cost} in round {number}; the cost scorer must return finite numbers"
            )
        return run.policy, cost

    for number in range(1, rounds + 1):
        policy, cost = fit(lam, number)
        step = dual_lr / number**decay
        rows.append({"round": number, "lam": lam, "cost": cost, "dual_lr": step})
        moved = dual_step(lam, cost, cost_limit, step)
        still = abs(moved - lam) <= tolerance and (
            abs(cost - cost_limit) <= tolerance or moved == 0
        )
        calm, lam = calm + 1 if still else 0, moved
        if calm == 2:  # once may be a policy that has not moved yet
            break
    warning = (
        still_rising(rows, lam, cost_limit, average=average, tolerance=tolerance)
        if lowest is None
        else ""
    )
    if warning:
        print(warning, file=sys.stderr)
    if lam > 0:  # at 0 the limit is slack, and what came before is no estimate
        lam = float(np.mean([*(row["lam"] for row in rows[1:]), lam][-average:]))
    policy, cost = fit(lam, rounds + 1)
    rows.append({"round": len(rows) + 1, "lam": lam, "cost": cost, "dual_lr": 0.0})
    return Aligned(policy, lam, pd.DataFrame(rows), seconds, warning)
