"""One loss, four levers.

    l_t = log pi_theta - log pi_ref
    z = beta [ sum_t m_t l_t (chosen) - sum_t m_t l_t (rejected) ] - margin
    L = -p log sigma(z) - (1 - p) log sigma(-z)

*pairs*: which rows come in; *winner*: p, the probability that the chosen response wins (1 for a
hard label); *margin*: by how much it must win; *tokens*: the masks m. With p = 1, margin = 0 and
all tokens it is DPO (arXiv 2305.18290, Eq. 7). Signs and directions, once for the whole kit: beta
larger = closer to the reference; log-probs are sums over response tokens, in nats; margin = chosen
over rejected, outside beta; cost > 0 = unsafe.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class PairLoss:
    """Per pair, all [B]: the loss; `h_w`, `h_l` full log-ratios of chosen and rejected; `z` the
    logit."""

    loss: torch.Tensor
    h_w: torch.Tensor
    h_l: torch.Tensor
    z: torch.Tensor


def preference_loss(
    logratio_w, logratio_l, *, beta, p=1.0, margin=0.0, tokens_w=None, tokens_l=None
):
    """The one loss, per pair. Token log-ratios [B, T_w], [B, T_l] are zero behind a response's end.

    `p`, `margin` are numbers or [B]; `tokens_w`, `tokens_l` the token lever, numbers [B, T], None
    for all. The margin is a signed function of the two responses, so that swapping them, p -> 1 - p
    and margin -> -margin leaves L unchanged. At the start L = ln 2 where the margin is 0, else
    softplus(margin).
    """
    kept_w = logratio_w if tokens_w is None else tokens_w * logratio_w
    kept_l = logratio_l if tokens_l is None else tokens_l * logratio_l
    z = beta * (kept_w.sum(-1) - kept_l.sum(-1)) - margin
    loss = -p * logsigmoid(z) - (1 - p) * logsigmoid(-z)
    return PairLoss(loss, logratio_w.sum(-1), logratio_l.sum(-1), z)


def ordered(gap):
    """1 where a gap is above 0, 1/2 where it is 0, else 0, in float64: what an accuracy counts.

    A gap (a tensor, nats) within rounding is 0: 1e-9 in float64, 1e-5 below. Else an untrained
    policy, whose gaps are all 0, would be right on as many pairs as rounding noise likes.
    """
    noise = 1e-9 if gap.dtype == torch.float64 else 1e-5
    return torch.where(gap.abs() <= noise, 0.5, (gap > 0).double())


def check_levers(p, margin, beta):
    """Refuse what would change the optimum's meaning. `p`, `margin` [N]; raises ValueError."""
    p, margin = torch.tensor(p), torch.tensor(margin)
    if not (beta > 0 and beta < float("inf")):
        raise ValueError(f"beta={beta}: the KL strength is a positive finite number")
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError(
            f"p={p[~((p >= 0) & (p <= 1))][0].item()}: the winner lever is a probability, between "
            "0 and 1"
        )
    if not bool(torch.isfinite(margin).all()):
        raise ValueError("margin: every margin must be finite")
    both = (margin != 0) & (p > 0) & (p < 1)
    if bool(both.any()):
        row = int(both.nonzero()[0])
        raise ValueError(
            f"margin={margin[row].item():g} with p={p[row].item():g} on pair {row}: a margin "
            "needs a hard label "
            "(p 0 or 1), with a soft one it would move the optimum"
        )
