"""The bug zoo (notebooks 01, 08): mistakes of real trainers, each with the number that shows it."""

import math

import pandas as pd
import torch

from ..logprobs import LogProbs, log_ratios, reference_logprobs
from ..loss import preference_loss

COLUMNS = ["bug", "what shows it", "healthy", "with the bug"]


def moved(policy):
    """A copy whose weights are moved by up to 2 %: a policy that is not its reference any more."""
    out = policy.copy()
    with torch.no_grad():
        for i, weights in enumerate(out.model.parameters()):
            weights *= 1 + 0.02 * math.sin(i + 1)
    return out


def ratios(policy, reference, tokens, rows):
    """Log-ratios of the pairs `rows` to the reference: chosen [B, T], rejected [B, T], nats."""
    known = reference_logprobs(reference, tokens)  # computed once, cached on disk
    with torch.no_grad():
        return log_ratios(LogProbs(policy).eval(), tokens, rows, policy, known)[:2]


def late_mask(x, n):
    """A mask that starts one token late and ends on one token of padding; x [B, T], n [B, 1]."""
    t = torch.arange(x.shape[1], device=x.device)[None]
    return ((t >= 1) & (t <= n)).to(x)


def _share(a, b):
    return (a.abs().sum() / b.abs().sum()).item()


def _loss(out):
    return out.loss.mean().item()


def measure(policy, reference, tokens, rows, *, beta):
    """Every bug on the pairs `rows`, with a policy that is not the reference: columns COLUMNS."""
    w, l = ratios(policy, reference, tokens, rows)
    lengths = (tokens.lengths_w[rows], tokens.lengths_l[rows])
    n_w, n_l = (torch.tensor(n, device=w.device)[:, None] for n in lengths)
    size = w.abs().sum() + l.abs().sum()
    healthy = preference_loss(w, l, beta=beta)
    averaged = preference_loss(w / n_w, l / n_l, beta=beta)
    counted = sum((late_mask(x, n) * x).abs().sum() for x, n in ((w, n_w), (l, n_l)))
    inside = preference_loss(w, l, beta=beta, margin=beta * 2.0)
    refreshed = preference_loss(w - w, l - l, beta=beta)
    logged = _share(healthy.h_w - healthy.h_l, healthy.z)
    bugs = [
        ("log-probs averaged, not summed", "|z| over that of the sums", 1.0),
        ("mask one token late", "share of the log-ratios not counted", 0.0),
        ("policy is not the reference at the start", "first loss", math.log(2)),
        ("reference refreshed at every step", "loss of a moved policy", _loss(healthy)),
        ("beta left out of the logged rewards", "logged margin over z", 1.0),
        ("a margin of 2 put inside beta", "what z loses by it", 2.0),
    ]
    found = [_share(averaged.z, healthy.z), 1 - (counted / size).item(), _loss(healthy)]
    found += [_loss(refreshed), logged, (healthy.z - inside.z).mean().item()]
    return pd.DataFrame([(*bug, value) for bug, value in zip(bugs, found)], columns=COLUMNS)
