"""Controls of Selective-DPO: other rules and weights of tokens, and what tokens are worth."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..logprobs import reference_logprobs
from ..pairs import chosen_rejected
from ..world import optimum
from .selective import Signed, TokenTable, offset, select

SEPO_KEEP = 0.3  # share of each response's tokens
TIS_CLAMP = (-0.5, 1.5)  # of the log of a token's weight


# ---------------------------------------------------------------- other scores
@dataclass(frozen=True)
class Inverted(Signed):
    """Control: the lowest signed scores instead of the highest."""

    def __call__(self, logratio_w, logratio_l, rows):
        return tuple(-s for s in super().__call__(logratio_w, logratio_l, rows))


@dataclass(frozen=True)
class Absolute(Signed):
    """Control: how far policy and score reference differ, whatever the direction."""

    def __call__(self, logratio_w, logratio_l, rows):
        return tuple(s.abs() for s in super().__call__(logratio_w, logratio_l, rows))


@dataclass(frozen=True)
class Among:
    """Scores of the tokens with `allowed` (a `TokenTable`) above 0, the others last."""

    score: object
    allowed: TokenTable

    def __call__(self, logratio_w, logratio_l, rows):
        scores = self.score(logratio_w, logratio_l, rows)
        allowed = self.allowed.rows(rows, logratio_w)
        return tuple(s.masked_fill(a <= 0, -torch.inf) for s, a in zip(scores, allowed))


@dataclass(frozen=True)
class Random:
    """Control: another mask of the same share at every step, from the training's torch generator.

    They are drawn for each part of a batch, so `accumulate` changes them.
    """

    def __call__(self, logratio_w, logratio_l, rows):
        sides = (logratio_w, logratio_l)
        return tuple(torch.rand(x.shape, dtype=torch.float64).to(x) for x in sides)


@dataclass(frozen=True)
class Fixed:
    """Scores `values` (a `TokenTable`) that training does not change: an oracle's, frozen masks."""

    values: TokenTable

    def __call__(self, logratio_w, logratio_l, rows):
        return self.values.rows(rows, logratio_w)


@dataclass(frozen=True)
class Weights:
    """The token lever with given numbers instead of a selection: `values` is a `TokenTable`."""

    values: TokenTable

    def __call__(self, logratio_w, logratio_l, mask_w, mask_l, rows):
        return self.values.rows(rows, logratio_w)


# ---------------------------------------------------------------- what tokens are worth
def optimum_offset(grammar, responses, table, *, reward, beta):
    """The strongest score reference there is: log pi* - log pi_ref of every token, exactly.

    `responses` is pi_ref's `evaluate.Exact` on the prompts of `table` (N pairs of the world),
    `reward` [prompts, R]. Along a response it sums to r / beta - log Z.
    """
    best = optimum.optimal(responses.logp, reward[responses.prompts], beta=beta)
    every = {
        x: optimum.conditional_logps(grammar.paths, star)
        - optimum.conditional_logps(grammar.paths, ref)
        for x, star, ref in zip(responses.prompts, best, responses.logp)
    }
    return _of_pairs(grammar, table, every)


def advantages(grammar, responses, table, *, values):
    """Exact advantage of every response token under a policy's `responses`; `values` [prompts, R].

    The rest is as above. On the rejected side the sign is turned, so that everywhere the highest
    are the tokens that make the preference: what made the chosen response better, and the rejected
    one worse.
    """
    every = {
        x: optimum.token_advantages(grammar.paths, logp, values[x])
        for x, logp in zip(responses.prompts, responses.logp)
    }
    return _of_pairs(grammar, table, every).turned()


def branching(grammar, table):
    """1.0 where a token was a choice, 0.0 where the grammar forces it, in pairs of the world."""
    choice = np.where(grammar.paths >= 0, 1.0 * grammar.branching[grammar.paths], 0.0)
    return _of_pairs(grammar, table, dict.fromkeys(table.prompt_id, choice))


def _of_pairs(grammar, table, values):
    """A `TokenTable` of world pairs from numbers [R, T] a prompt: `values`, {prompt id: array}."""
    sides = chosen_rejected(table, table.y_0, table.y_1)
    return TokenTable(
        *[[values[x][r, : grammar.length[r]] for x, r in zip(table.prompt_id, y)] for y in sides]
    )


def auc(score, positive):
    """Area under the ROC curve: P(score of a positive > score of a negative), ties count half.

    Arrays [n]; scores are equal where nothing wider than 1e-9 lies between them; nan where one kind
    is missing.
    """
    from scipy.stats import rankdata

    positive = np.asarray(positive, dtype=bool)
    n, m = positive.sum(), (~positive).sum()
    if not n or not m:
        return math.nan
    order = np.argsort(score, kind="stable")
    steps = np.diff(np.asarray(score, dtype=float)[order], prepend=-np.inf) > 1e-9
    level = np.empty(len(order))
    level[order] = np.cumsum(steps)
    return float((rankdata(level)[positive].sum() - n * (n + 1) / 2) / (n * m))


# ---------------------------------------------------------------- relatives, on the same loss
def sepo(reference, oracle, tokens, table, *, beta):
    """SePO (2408.13518) as levers: (token lever, table with its margin).

    An oracle's log-ratio chooses the top 30 % of the chosen and the bottom 30 % of the rejected
    tokens; the loss is reference-free and length-normalised. Per pair, taking pi_ref out of the one
    loss's log-ratios is a constant: a margin.
    """
    selected = select(offset(oracle, reference, tokens).turned(), SEPO_KEEP)
    weight = selected.map(lambda kept: kept / kept.sum())
    ref = reference_logprobs(reference, tokens)
    sums = weight.map(np.dot, ref)
    margin = -beta * (np.array(sums.chosen) - np.array(sums.rejected))
    return Weights(weight), table.assign(margin=margin)


def tis_dpo(forward, reverse, tokens):
    """TIS-DPO (2410.04350): token weights exp(clamp(+-log(pi_forward / pi_reverse))).

    From a DPO model and one trained on swapped labels; + on chosen, - on rejected tokens. *Differs
    from the paper:* the clamp is our choice.
    """
    ratio = offset(forward, reverse, tokens).turned()
    return Weights(ratio.map(lambda score: np.exp(np.clip(score, *TIS_CLAMP))))


def imitation(z, beta):
    """Link of likelihood training: -z / beta.

    With the rejected tokens left out it is SFT on the kept tokens of the chosen response, and with
    a score reference Rho-1's selective language modelling.
    """
    return -z / beta
