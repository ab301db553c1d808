"""Selective-DPO (Dong, arXiv 2507.07725): the token lever. Only the tokens with the highest scores enter the loss.

    s_w,t = log pi_score - log pi_theta (chosen)        s_l,t = log pi_theta - log pi_score (rejected)
    L = -log sigma(beta [ sum over S_w of l_t - sum over S_l of l_t ])        l_t = log pi_theta - log pi_ref

S_w and S_l are the top share `keep` of each response by its score, chosen and rejected apart, found anew at
every step and without a gradient. pi_score, the *score reference*, need not be pi_ref: what a score adds is
the *offset* log pi_score - log pi_ref of every token, a `TokenTable`. Where both are the same model,
L = softplus(beta (sum over S_w of s_w + sum over S_l of s_l)).

*Differs from the paper:* its quantile is rounded by interpolation and depends on the precision; here
k = ceil(keep n) tokens are kept, scores are rounded first, and of equal scores the earlier token wins, but
all are kept where all are equal, as at the paper's first step (policy = reference). The paper has
one model, DPO-aligned already, as pi_score and pi_ref; here they are two arguments, and the
notebooks keep the SFT model as pi_ref. The paper's setting is `align` against the aligned model
with `TopTokens(0.4)`: run in a section of notebook 04, where it leaves the policy where it starts.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from .. import optimum
from ..evaluate import at_work
from ..logprobs import ReferenceTable, reference_logprobs

DIGITS = {torch.float64: 9, torch.float32: 5}  # what rounding noise does not reach


class TokenTable(ReferenceTable):
    """A number for every response token of N pairs: `chosen` and `rejected`, lists of N arrays [n tokens]."""

    def cache_content(self):
        """All values, as they are now."""
        sides = (self.chosen, self.rejected)
        return [[np.concatenate(side), list(map(len, side))] for side in sides]

    def map(self, function, *others):
        """function(mine, others ...) on every array: a new table."""
        side = lambda name: [function(*arrays) for arrays in zip(*(getattr(t, name) for t in (self, *others)))]
        return TokenTable(side("chosen"), side("rejected"))


# ---------------------------------------------------------------- scores: float [B, T_w], [B, T_l]


def token_scores(logratio_w, logratio_l, offset_w=0.0, offset_l=0.0):
    """The paper's signed scores (s_w, s_l), nats, from log-ratios to pi_ref and offsets log pi_score - log pi_ref."""
    return offset_w - logratio_w, logratio_l - offset_l


@dataclass(frozen=True)
class Signed:
    """The paper's score against a score reference: `offset` is its `TokenTable`, None where it is pi_ref itself."""

    offset: TokenTable | None = None

    def __call__(self, logratio_w, logratio_l, rows):
        offset = (0.0, 0.0) if self.offset is None else self.offset.rows(rows, logratio_w)
        return token_scores(logratio_w, logratio_l, *offset)


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
            s.masked_fill(a <= 0, -torch.inf) for s, a in zip(self.score(logratio_w, logratio_l, rows), allowed)
        )


@dataclass(frozen=True)
class Random:
    """Control: masks of the same share drawn anew at every step, from torch's generator (the training seeds it).

    They are drawn for each part of a batch, so `accumulate` changes them.
    """

    def __call__(self, logratio_w, logratio_l, rows):
        return tuple(torch.rand(x.shape, dtype=torch.float64).to(x) for x in (logratio_w, logratio_l))


@dataclass(frozen=True)
class Fixed:
    """Scores that do not change while training: frozen masks, or an oracle's. `values` is a `TokenTable`."""

    values: TokenTable

    def __call__(self, logratio_w, logratio_l, rows):
        return self.values.rows(rows, logratio_w)


# ---------------------------------------------------------------- the token lever


def top_share(scores, mask, keep):
    """Mask [B, T] of the ceil(keep n) highest scores among the n tokens of each row that `mask` (bool) marks.

    Scores are rounded to 9 digits in float64 and 5 in float32; equal ones go to the lowest position, and a
    row whose scores are all equal keeps every token. The mask alone says what a token is, never its score.
    """
    scores = torch.round(scores.detach(), decimals=DIGITS.get(scores.dtype, 5))
    inside = scores.masked_fill(~mask, -torch.inf)
    count = torch.ceil(torch.round(keep * mask.sum(-1, keepdim=True).double(), decimals=9))
    rank = inside.sort(dim=-1, descending=True, stable=True).indices.argsort(dim=-1)
    tied = inside.amax(-1, keepdim=True) == scores.masked_fill(~mask, torch.inf).amin(-1, keepdim=True)
    return mask & ((rank < count) | (tied & (count > 0)))


def select(scores, keep):
    """The kept tokens of a whole `TokenTable` of scores, 1.0 or 0.0: what `top_share` keeps of each response."""

    def one(score):
        score = torch.from_numpy(np.asarray(score))[None]
        return top_share(score, torch.ones_like(score, dtype=torch.bool), keep)[0].to(score.dtype).numpy()

    return scores.map(one)


@dataclass(frozen=True)
class TopTokens:
    """The token lever of `train.align`: keep the top share of each response by `score`.

    `keep` in [0, 1] for the chosen response, `keep_rejected` for the other (default: the same). A share of 1
    is DPO, bit for bit; 0 leaves a side out of the loss. Raises ValueError for another share.
    """

    keep: float
    score: object = Signed()
    keep_rejected: float | None = None

    def __post_init__(self):
        for name, share in (("keep", self.keep), ("keep_rejected", self.keep_rejected)):
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name}={share}: the share of tokens kept lies between 0 and 1")

    def __call__(self, logratio_w, logratio_l, mask_w, mask_l, rows):
        s_w, s_l = self.score(logratio_w, logratio_l, rows)
        keep_l = self.keep if self.keep_rejected is None else self.keep_rejected
        return top_share(s_w, mask_w, self.keep).to(s_w), top_share(s_l, mask_l, keep_l).to(s_l)


@dataclass(frozen=True)
class Weights:
    """The token lever with given numbers instead of a selection: `values` is a `TokenTable`."""

    values: TokenTable

    def __call__(self, logratio_w, logratio_l, mask_w, mask_l, rows):
        return self.values.rows(rows, logratio_w)


# ---------------------------------------------------------------- score references and the oracle


def offset(score_reference, reference, tokens):
    """log pi_score - log pi_ref of every response token of the pairs, a `TokenTable`; both read the same tokens."""
    with at_work(score_reference, reference.device):
        read = [reference_logprobs(p, tokens) for p in (score_reference, reference)]
    score, ref = (TokenTable(t.chosen, t.rejected) for t in read)
    return score.map(np.subtract, ref)


def _per_token(grammar, responses, table, of_prompt):
    """A `TokenTable` of world pairs from `of_prompt(prompt id, logp [R])`: [R, T] numbers, one row a response."""
    values = {x: of_prompt(x, logp) for x, logp in zip(responses.prompts, responses.logp)}
    rows = []
    for wanted in (True, False):
        y = np.where((table.chosen == 0) == wanted, table.y_0, table.y_1)
        rows.append([values[x][r, : grammar.length[r]] for x, r in zip(table.prompt_id, y)])
    return TokenTable(*rows)


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
    y = np.where((table.chosen == 0).to_numpy()[:, None], table[["y_0", "y_1"]], table[["y_1", "y_0"]])
    return TokenTable(*[[choice[r, : grammar.length[r]] for r in column] for column in y.T])


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
        [float(w @ r) for w, r in zip(*side)] for side in ((weight.chosen, ref.chosen), (weight.rejected, ref.rejected))
    ]
    return Weights(weight), table.assign(margin=-beta * (np.array(free[0]) - np.array(free[1])))


def tis_dpo(forward, reverse, tokens, *, low=-0.5, high=1.5):
    """TIS-DPO (2410.04350): token weights exp(clamp(+-log(pi_forward / pi_reverse))) from a DPO model and one
    trained on swapped labels; + on chosen, - on rejected tokens. *Differs from the paper:* the clamp is our choice.
    """
    ratio = offset(forward, reverse, tokens)
    weigh = lambda s: np.exp(np.clip(s, low, high))
    return Weights(TokenTable([weigh(s) for s in ratio.chosen], [weigh(-s) for s in ratio.rejected]))


def imitation(z, beta):
    """Link of likelihood training: -z / beta. With the rejected tokens left out it is SFT on the kept tokens of
    the chosen response, and with a score reference Rho-1's selective language modelling."""
    return -z / beta
