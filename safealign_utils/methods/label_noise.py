"""Labels that may be wrong: what other methods do with the column p, one link each.

`smoothed` writes p = 1 - noise: how often a hard label is right. On that column

    cDPO        L = -p log sigma(z) - (1 - p) log sigma(-z)               `smoothed`, no link
    rDPO        L = [-p log sigma(z) + (1 - p) log sigma(-z)] / (2p - 1)  `robust`
    GDPO        L = -log sigma((2p - 1) z)                                `geometric`
    distilled   L = (z - log p / (1 - p))^2                               `distilled`
    Dr. DPO     L = -t log mean_i exp(-L_i / t)                           `SoftMinimum(t)`

z is the one logit of `loss.py`. They differ in what they reach: cDPO's minimum is z = log p/(1-p),
a finite margin that draws all pairs towards indifference; rDPO's loss is that of the true labels in
expectation, and has no minimum on a single pair; GDPO's falls for ever, only more slowly on pairs
that are in doubt; the distilled one has cDPO's minimum, with a parabola around it. So where p is
the probability itself, the plain loss on p ("soft labels") and `distilled` both end at pi*, GDPO
does not.

*Sources*: rDPO 2403.00409, GDPO 2409.06691, distilled DPO 2405.19316; for cDPO and Dr. DPO no
identifier is stated in the sources at hand. None of these texts was at hand either: the losses are
derived from what the methods are for, as the docstrings say; their constants, schedules and results
are not stated.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid


def smoothed(table, noise):
    """cDPO, label smoothing: hard labels (p = 1 or 0) become p = 1 - noise or noise; others stay.

    `noise` is the share of labels that are wrong. Raises ValueError unless 0 <= noise < 1/2.
    """
    if not 0 <= noise < 0.5:
        raise ValueError(f"noise={noise}: the share of wrong labels, 0 or above and below 1/2")
    p = table.p.where(table.p != 1, 1 - noise).where(table.p != 0, noise)
    return table.assign(p=p)


def robust(z, beta, p):
    """rDPO's loss [B]: unbiased under flips with probability 1 - p (2403.00409; derived).

    If a label is right with probability p, the mean of this loss over the flip is -log sigma(z) of
    the right label. A pair with p = 1 has the plain loss; p near 1/2 is refused with a ValueError
    (its weight is infinite).
    """
    if bool((p <= 0.5 + 1e-6).any()):
        raise ValueError(f"p={float(p.min()):g}: rDPO needs labels that are mostly right, p > 1/2")
    return (-p * logsigmoid(z) + (1 - p) * logsigmoid(-z)) / (2 * p - 1)


def geometric(z, beta, p):
    """GDPO's loss [B]: the log-ratio of the weighted geometric means of the two responses'
    likelihoods, pi(w)^p pi(l)^(1-p) over pi(l)^p pi(w)^(1-p), is 2p - 1 times the pair's
    (2409.06691; derived from the name)."""
    return -logsigmoid((2 * p - 1) * z)


def distilled(z, beta, p):
    """Distilled DPO's loss [B], nats^2: the implicit reward's gap z against a reward model's, here
    log p / (1 - p) (2405.19316; derived). A certain label has an infinite gap: ValueError."""
    if bool(((p <= 0) | (p >= 1)).any()):
        raise ValueError("p: a certain label has no finite gap of rewards; soften it")
    return (z - torch.logit(p)).square()


@dataclass(frozen=True)
class SoftMinimum:
    """Dr. DPO's link (derived): -t log of the batch's mean of exp(-L / t), so pairs with a large
    loss, wrong labels among them, count less.

    It is returned pair by pair, as L_i times its detached weight, n exp(-L_i / t) / sum: the
    gradient is that of the soft minimum. `temperature` t in nats; infinite t would be DPO. The
    batch is what one process computes at a time. Raises ValueError for a t that is not above 0.
    """

    temperature: float

    def __post_init__(self):
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: a finite number above 0, in nats")

    def __call__(self, z, beta):
        loss = -logsigmoid(z)
        weight = torch.softmax(-loss.detach() / self.temperature, 0) * len(loss)
        return weight * loss
