"""IPO (Azar et al., arXiv 2310.12036): another link of the same logit, with a target that is
finite.

The shortest method of the kit, and the example of how one is added (`CONTRIBUTING.md`). DPO's loss
falls for ever as the winner's margin grows, so that labels without noise leave nothing of the pull
towards the reference; IPO's is a parabola around a margin.
"""

import numpy as np
from scipy.special import expit


def ipo(z, beta):
    """IPO's loss [B] of the logit z [B]: (log-ratio of chosen over rejected - 1 / (2 beta))^2,
    nats^2.

    The paper's temperature tau is `beta`, and z = beta x log-ratio. Hand it to `train.align` as
    `link`; it starts at 1 / (4 beta^2), not at ln 2.
    """
    return (z / beta - 1 / (2 * beta)).square()


def win_rates(reward, opponents):
    """P(a response wins against one drawn from `opponents`) under Bradley-Terry on r: [P, R].

    `reward` [P, R] in nats, `opponents` probabilities [P, R]. IPO's optimum on pairs of two such
    draws is that of DPO with these in place of r: `optimum.optimal(logp_ref, win_rates, beta=tau)`.
    Rewards times a large number are those of labels without noise: the better response always wins.
    *Differs from the paper:* the two responses of a pair of the world are never the same one.
    """
    gap = reward[:, :, None] - reward[:, None, :]
    return np.einsum("pij,pj->pi", expit(gap), opponents)
