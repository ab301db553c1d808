"""Selective-DPO (Dong, arXiv 2507.07725), the token lever: only high-scoring tokens enter the loss.

    s_w,t = log pi_score - log pi_theta (chosen)     s_l,t = log pi_theta - log pi_score (rejected)
    L = -log sigma(beta [ sum over S_w of l_t - sum over S_l of l_t ])    l_t = log pi_theta/pi_ref

S_w and S_l are the top share `keep` of each response by its score, chosen and rejected apart, found
again at every step and without a gradient. pi_score, the *score reference*, need not be pi_ref:
what a score adds is the *offset* log pi_score - log pi_ref of every token, a `TokenTable`. Where
both are the same model, L = softplus(beta (sum over S_w of s_w + sum over S_l of s_l)).

*Differs from the paper:*
1. Its quantile is rounded by interpolation and depends on the precision. Here k = ceil(keep n)
   tokens are kept, scores are rounded first, and of equal scores the earlier token wins, but all
   are kept where all are equal, as at the paper's first step (policy = reference).
2. The paper has one model, DPO-aligned already, as pi_score and pi_ref. Here they are two
   arguments, and the notebooks keep the SFT model as pi_ref. The paper's setting is `align` against
   the aligned model with `TopTokens(0.4)`: run in a section of notebook 04, where it leaves the
   policy where it starts.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ..logprobs import ReferenceTable, reference_logprobs
from ..policy import at_work

DIGITS = {torch.float64: 9, torch.float32: 5}  # what rounding noise does not reach


class TokenTable(ReferenceTable):
    """A number for every response token of N pairs: `chosen`, `rejected`, lists of N arrays [n]."""

    def cache_content(self):
        """All values, as they are now."""
        sides = (self.chosen, self.rejected)
        return [[np.concatenate(side), list(map(len, side))] for side in sides]

    def map(self, function, *others):
        """function(mine, others ...) on every array: a new table."""
        tables = (self, *others)
        chosen = [function(*arrays) for arrays in zip(*(t.chosen for t in tables))]
        return TokenTable(chosen, [function(*a) for a in zip(*(t.rejected for t in tables))])

    def turned(self):
        """The table with the other sign on the rejected side."""
        return TokenTable(self.chosen, [-values for values in self.rejected])


# ---------------------------------------------------------------- scores: float [B, T_w], [B, T_l]
def token_scores(logratio_w, logratio_l, offset_w=0.0, offset_l=0.0):
    """The paper's signed scores (s_w, s_l), nats, from log-ratios to pi_ref and offsets."""
    return offset_w - logratio_w, logratio_l - offset_l


@dataclass(frozen=True)
class Signed:
    """The paper's score against a score reference: its `TokenTable`, None where it is pi_ref."""

    offset: TokenTable | None = None

    def __call__(self, logratio_w, logratio_l, rows):
        offset = (0.0, 0.0) if self.offset is None else self.offset.rows(rows, logratio_w)
        return token_scores(logratio_w, logratio_l, *offset)


# ---------------------------------------------------------------- the token lever
def top_share(scores, mask, keep):
    """Mask [B, T] of the ceil(keep n) highest scores among the n tokens of each row.

    `mask` (bool) alone says which places are tokens, never the score there. Scores are rounded to 9
    digits in float64 and 5 in float32; equal ones go to the lowest position, and a row whose scores
    are all equal keeps every token.
    """
    scores = torch.round(scores.detach(), decimals=DIGITS.get(scores.dtype, 5))
    inside = scores.masked_fill(~mask, -torch.inf)
    count = torch.ceil(torch.round(keep * mask.sum(-1, keepdim=True).double(), decimals=9))
    rank = inside.sort(dim=-1, descending=True, stable=True).indices.argsort(dim=-1)
    lowest = scores.masked_fill(~mask, torch.inf).amin(-1, keepdim=True)
    all_equal = inside.amax(-1, keepdim=True) == lowest
    return mask & ((rank < count) | (all_equal & (count > 0)))


def select(scores, keep):
    """What `top_share` keeps of each response of a `TokenTable` of scores: a table of 1 and 0."""

    def of_response(score):
        score = torch.from_numpy(np.asarray(score))[None]
        kept = top_share(score, torch.ones_like(score, dtype=torch.bool), keep)
        return kept[0].to(score.dtype).numpy()

    return scores.map(of_response)


@dataclass(frozen=True)
class TopTokens:
    """The token lever of `train.align`: keep the top share of each response by `score`.

    `keep` in [0, 1] for the chosen response, `keep_rejected` for the other (default: the same). A
    share of 1 is DPO, bit for bit; 0 leaves a side out of the loss. Raises ValueError for another
    share.
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


def offset(score_reference, reference, tokens):
    """log pi_score - log pi_ref of every response token of the pairs: a `TokenTable`."""
    with at_work(score_reference, reference.device):
        read = [reference_logprobs(p, tokens) for p in (score_reference, reference)]
    score, ref = (TokenTable(t.chosen, t.rejected) for t in read)
    return score.map(np.subtract, ref)
