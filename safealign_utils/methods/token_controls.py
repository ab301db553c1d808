"""Controls of Selective-DPO: other rules to choose tokens, other weights of tokens, and what tokens are worth."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..logprobs import reference_logprobs
from ..pairs import chosen_rejected
from ..world import optimum
from .selective import Signed, TokenTable, offset, select


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
    """Scores of some tokens only, the others last: `allowed` is a `TokenTable`, above 0 where a token may be chosen."""

    score: object
    allowed: TokenTable

    def __call__(self, logratio_w, logratio_l, rows):
        allowed = self.allowed.rows(rows, logratio_w)
        return tuple(
            s.masked_fill(a <= 0, -torch.inf)
            for s, a in zip(self.score(logratio_w, logratio_l, rows), allowed)
        )


@dataclass(frozen=True)
class Random:
    """Control: masks of the same share drawn anew at every step, from torch's generator (the training seeds it).

    They are drawn for each part of a batch, so `accumulate` changes them.
    """

    def __call__(self, logratio_w, logratio_l, rows):
        return tuple(
            torch.rand(x.shape, dtype=torch.float64).to(x) for x in (logratio_w, logratio_l)
        )


@dataclass(frozen=True)
class Fixed:
    """Scores that do not change while training: frozen masks, or an oracle's. `values` is a `TokenTable`."""

    values: TokenTable

    def __call__(self, logratio_w, logratio_l, rows):
        return self.values.rows(rows, logratio_w)


@dataclass(frozen=True)
class Weights:
    """The token lever with given numbers instead of a selection: `values` is a `TokenTable`."""

    values: TokenTable

    def __call__(self, logratio_w, logratio_l, mask_w, mask_l, rows):
        return self.values.rows(rows, logratio_w)


def _per_token(grammar, responses, table, of_prompt):
    """A `TokenTable` of world pairs from `of_prompt(prompt id, logp [R])`: [R, T] numbers, one row a response."""
    values = {x: of_prompt(x, logp) for x, logp in zip(responses.prompts, responses.logp)}
    return TokenTable(
        *[
            [values[x][r, : grammar.length[r]] for x, r in zip(table.prompt_id, y)]
            for y in chosen_rejected(table, table.y_0, table.y_1)
        ]
    )


def optimum_offset(grammar, responses, table, *, reward, beta):
    """The strongest score reference there is: log pi*(token | prefix) - log pi_ref(token | prefix), exactly.

    `responses` is pi_ref's `evaluate.Exact` on the prompts of `table` (N pairs of the world), `reward`
    [prompts, R]. Along a response it sums to r / beta - log Z.
    """

    def of_prompt(x, ref):
        best = optimum.optimal(ref[None], reward[[x]], beta=beta)[0]
        return optimum.token_logps(grammar.paths, best) - optimum.token_logps(grammar.paths, ref)

    return _per_token(grammar, responses, table, of_prompt)


def advantages(grammar, responses, table, *, values):
    """Exact advantage of every response token under a policy's `responses`; `values` [prompts, R], the rest as above.

    On the rejected side the sign is turned, so that everywhere the highest are the tokens that make the
    preference: what made the chosen response better, and the rejected one worse.
    """
    of_prompt = lambda x, logp: optimum.token_advantages(grammar.paths, logp, values[x])
    table = _per_token(grammar, responses, table, of_prompt)
    return TokenTable(table.chosen, [-a for a in table.rejected])


def branching(grammar, table):
    """1.0 where a token was a choice, 0.0 where the grammar forces it: a `TokenTable` of world pairs."""
    choice = np.where(grammar.paths >= 0, 1.0 * grammar.branching[grammar.paths], 0.0)
    both = chosen_rejected(table, table.y_0, table.y_1)
    return TokenTable(*[[choice[r, : grammar.length[r]] for r in y] for y in both])


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
    level = np.empty(len(order))
    level[order] = np.cumsum(np.diff(np.asarray(score, dtype=float)[order], prepend=-np.inf) > 1e-9)
    return float((rankdata(level)[positive].sum() - n * (n + 1) / 2) / (n * m))


# ---------------------------------------------------------------- relatives, on the same loss
def sepo(reference, oracle, tokens, table, *, beta, keep=0.3):
    """SePO (2408.13518) as levers: (token lever, table with its margin).

    An oracle's log-ratio chooses the top `keep` of the chosen and the bottom `keep` of the rejected tokens;
    the loss is reference-free and length-normalised. Per pair, taking pi_ref out of the one loss's log-ratios
    is a constant: a margin.
    """
    score = offset(oracle, reference, tokens)
    score = TokenTable(score.chosen, [-s for s in score.rejected])
    weight = select(score, keep).map(lambda kept: kept / kept.sum())
    ref = reference_logprobs(reference, tokens)
    free = [
        [float(w @ r) for w, r in zip(*side)]
        for side in ((weight.chosen, ref.chosen), (weight.rejected, ref.rejected))
    ]
    return Weights(weight), table.assign(margin=-beta * (np.array(free[0]) - np.array(free[1])))


def tis_dpo(forward, reverse, tokens, *, low=-0.5, high=1.5):
    """TIS-DPO (2410.04350): token weights exp(clamp(+-log(pi_forward / pi_reverse))) from a DPO model and one
    trained on swapped labels; + on chosen, - on rejected tokens. *Differs from the paper:* the clamp is our choice.
    """
    ratio = offset(forward, reverse, tokens)
    weigh = lambda s: np.exp(np.clip(s, low, high))
    return Weights(
        TokenTable([weigh(s) for s in ratio.chosen], [weigh(-s) for s in ratio.rejected])
    )


def imitation(z, beta):
    """Link of likelihood training: -z / beta. With the rejected tokens left out it is SFT on the kept tokens of
    the chosen response, and with a score reference Rho-1's selective language modelling."""
    return -z / beta
