"""Members of `pairs.cross_fitted`: what scores a pair of responses after a look at other pairs.

A member is called with labelled rows and with rows [n], and returns margins float [n] of response
0 over response 1; `evaluate.bag_of_words`, a linear model of word counts, is one as it stands (the
rows asked for call response 0 chosen). The unit does not matter: the combination weighs members.
The result is a table for any method: SafeDPO's T keeps its p on pairs of equal status,
`pairs.rewards_of_labels` makes C-DPO's rewards of it.
"""

from dataclasses import dataclass

from ..evaluate import pair_margins
from ..pairs import tokenize
from ..policy import Policy
from ..train import align
from .probe import States, fit
from .scorer_training import pair_margins as score_margins
from .scorer_training import train_reward


@dataclass(frozen=True)
class RewardModel:
    """The kit's Bradley-Terry reward model; `training` are options of `train_reward`."""

    reference: Policy
    training: dict

    def __call__(self, seen, asked):
        return score_margins(train_reward(self.reference, _labelled(seen), **self.training), asked)


@dataclass(frozen=True)
class ImplicitReward:
    """The implicit reward of DPO: full log-ratios, response 0 minus response 1, nats. `training`
    are options of `train.align`, beta among them."""

    reference: Policy
    training: dict
    max_length: int = 256

    def __call__(self, seen, asked):
        seen, asked = (
            tokenize(table, self.reference, max_length=self.max_length) for table in (seen, asked)
        )
        policy = align(self.reference, seen, **self.training).policy
        return pair_margins(policy, self.reference, asked)


@dataclass(frozen=True)
class Heads:
    """Linear heads on the frozen reference's hidden states (`probe`)."""

    states: States

    def __call__(self, seen, asked):
        seen = _labelled(seen)
        heads = fit("reward", self.states.of_pairs(seen), seen)
        both = self.states.of_pairs(asked)
        return heads(both[:, 0]) - heads(both[:, 1])


def _labelled(table):
    """The hard labels of a table as the column that reward models read."""
    winner = table.chosen.where(table.p == 1, 1 - table.chosen)
    return table.assign(better_response_id=winner.astype("Int64"))
