"""Rules that notebooks compare by name: which tokens enter the loss (04, 08), and which pairs are
trained on (05, 08)."""

import numpy as np
import torch

from .. import evaluate, references
from ..engine.streams import generator
from ..methods import dog, pair_controls, safedpo, selective, token_controls
from ..methods.selective import Signed, TokenTable, TopTokens

LARGER = dict(hidden_size=128, num_hidden_layers=4, intermediate_size=352)
CHOICES = 0.27  # 80 % of the 34 % of tokens that are a choice


def swapped(table):
    """The same pairs with the other winner."""
    return table.assign(chosen=1 - table.chosen)


def coin_flips(setup):
    """A seed's training pairs, their winners thrown by a coin."""
    g = generator(setup.seed, "thrown labels")
    heads = g.random(len(setup.train)) < 0.5
    return setup.train.assign(chosen=np.where(heads, setup.train.chosen, 1 - setup.train.chosen))


at_start = TokenTable.turned  # of an offset: the signed score where the policy is the reference


class TokenRules:
    """Score references and token levers by name, for the training pairs of a study's setups."""

    def __init__(self, study):
        self.study, self.settings = study, study.settings
        self._teachers, self._offsets, self._truths = {}, {}, {}

    def teacher(self, setup, kind):
        """The policy of a score reference; the exact optimum, "optimum", is none."""
        if (setup.seed, kind) not in self._teachers:
            self._teachers[setup.seed, kind] = self._teach(setup, kind)
        return self._teachers[setup.seed, kind]

    def _teach(self, setup, kind):
        if kind == "equal":
            return setup.reference
        start = None
        if kind == "larger":
            world, s = self.study.world, self.settings
            larger = references.train_reference(world, seed=setup.seed, shape=LARGER)
            start = larger.to(s.dtype, self.study.device)
        table = swapped(setup.train) if kind == "weaker" else setup.train
        return self.study.train(setup, table, reference=start).policy

    def offset(self, setup, kind, table=None):
        """log pi_score - log pi_ref of every token of the pairs (or of a table), a TokenTable."""
        if table is not None:
            return self._offset(setup, kind, table)
        if (setup.seed, kind) not in self._offsets:
            self._offsets[setup.seed, kind] = self._offset(setup, kind, setup.train)
        return self._offsets[setup.seed, kind]

    def _offset(self, setup, kind, table):
        if kind != "optimum":
            tokens = self.study.tokens(setup, table)
            return selective.offset(self.teacher(setup, kind), setup.reference, tokens)
        found = self.study.responses(setup.reference, "train")
        oracle = dict(reward=self.study.world.reward, beta=self.settings.beta)
        return token_controls.optimum_offset(setup.reference.grammar, found, table, **oracle)

    def truth(self, setup):
        """The true advantage of every token of the pairs (the world only), a TokenTable."""
        if setup.seed not in self._truths:
            found, world = self.study.responses(setup.reference, "train"), self.study.world
            of = setup.reference.grammar, found, setup.train
            self._truths[setup.seed] = token_controls.advantages(*of, values=world.reward)
        return self._truths[setup.seed]

    def lever(self, setup, rule, keep):
        """The token lever of a rule at a share `keep`; None lets all tokens in."""
        if rule in ("dpo", "beta"):
            return None
        if rule == "tis":
            against = self.teacher(setup, "weaker")
            aligned = self.teacher(setup, "aligned")
            return token_controls.tis_dpo(aligned, against, self.study.tokens(setup))
        signed = Signed(self.offset(setup, self.settings.score_reference))
        if rule in ("rho", "chosen", "rejected"):
            shares = {"rho": (keep, 0.0), "chosen": (keep, 1.0), "rejected": (1.0, keep)}[rule]
            return TopTokens(shares[0], signed, keep_rejected=shares[1])
        score = {
            "signed": lambda: signed,
            "inverted": lambda: token_controls.Inverted(signed.offset),
            "absolute": lambda: token_controls.Absolute(signed.offset),
            "frozen": lambda: token_controls.Fixed(at_start(signed.offset)),
            "random": lambda: token_controls.Random(),
            "oracle": lambda: token_controls.Fixed(self.truth(setup).map(np.abs)),
            "averaged": lambda: Signed(self._averaged(setup)),
            "choices": lambda: token_controls.Among(
                signed, token_controls.branching(setup.reference.grammar, setup.train)
            ),
        }[rule]()
        return TopTokens(CHOICES if rule == "choices" else keep, score)

    def _averaged(self, setup):
        """Mean offset of four DPO policies, each trained on a quarter of the pairs."""
        quarters = (setup.train.iloc[i::4].reset_index(drop=True) for i in range(4))
        policies = [self.study.train(setup, quarter).policy for quarter in quarters]
        tokens = self.study.tokens(setup)
        one, *others = [selective.offset(p, setup.reference, tokens) for p in policies]
        return one.map(lambda *o: np.mean(o, axis=0), *others)

    def train(self, setup, rule, keep, **changes):
        """One training with a rule at a share of tokens: a `Trained`."""
        if rule == "shuffled":
            return self.on_coins(setup, self.settings.score_reference, keep)
        if rule == "sepo":
            return self._sepo(setup)
        if rule == "beta":
            changes["beta"] = keep * self.settings.beta
        if rule == "rho":
            changes["link"] = token_controls.imitation
        lever = self.lever(setup, rule, keep)
        return self.study.train(setup, setup.train, token_lever=lever, **changes)

    def on_coins(self, setup, kind, keep):
        """Selective-DPO against a score reference, on labels that are coin flips."""
        table = coin_flips(setup)
        score = Signed(self.offset(setup, kind, table))
        return self.study.train(setup, table, token_lever=TopTokens(keep, score))

    def _sepo(self, setup):
        tokens = self.study.tokens(setup)
        strength = self.settings.beta * 0.3 * np.mean([*tokens.lengths_w, *tokens.lengths_l])
        of = setup.reference, self.teacher(setup, "aligned"), tokens, setup.train
        lever, table = token_controls.sepo(*of, beta=strength)
        return self.study.train(setup, table, token_lever=lever, beta=strength)


def mixed(table):
    """Whether one response of a pair is safe and the other is not, bool [N]."""
    return np.not_equal(*safedpo.unsafe_labels(table))


class PairRules:
    """What each selection rule picks: `pools` are tables without exact copies, `directions` their
    directions, both {seed: ...}."""

    def __init__(self, study, pools, directions):
        self.study, self.settings = study, study.settings
        self.pools, self.directions = pools, directions
        s = self.settings
        self.subspaces = dict(anchor_rank=s.anchor_rank, residual_rank=s.residual_rank)

    def choose(self, setup, rule, k):
        """Rows of a seed's pool that a rule picks, in order, int [k]; all where k is more."""
        seed, table, u = setup.seed, self.pools[setup.seed], self.directions[setup.seed]
        source, ridge, spaces = table.source.to_numpy(), self.settings.ridge, self.subspaces
        if k >= len(table):
            return np.arange(len(table))
        literal = spaces | dict(outside="anchor", residual_rank=6)
        rows = {
            "random": lambda: pair_controls.random_pairs(len(table), k, seed=seed),
            "dog": lambda: dog.dog(u, source, k, **spaces),
            "dog_d": lambda: dog.dog_d(u, source, k, ridge=ridge, **spaces).rows,
            "literal": lambda: dog.dog_d(u, source, k, ridge=ridge, **literal).rows,
            "log_det": lambda: pair_controls.plain_log_det(u, k, ridge=ridge),
            "sharp_log_det": lambda: pair_controls.plain_log_det(u, k, ridge=ridge / 10),
            "safety_log_det": lambda: pair_controls.plain_log_det(
                u * torch.from_numpy(1.0 + mixed(table)).to(u)[:, None], k, ridge=ridge
            ),
            "k_means": lambda: pair_controls.k_means(u, k, seed=seed),
            "facility": lambda: pair_controls.facility_location(u, k),
            "k_centre": lambda: pair_controls.k_centre(u, k),
            "largest_margin": lambda: self._by_margin(setup, k, "largest"),
            "smallest_margin": lambda: self._by_margin(setup, k, "smallest"),
            "easiest_half": lambda: pair_controls.easiest_half(
                self._held_out_losses(setup), k, seed=seed
            ),
            "stratified": lambda: pair_controls.stratified(table.category.to_numpy(), k, seed=seed),
        }[rule]()
        return np.sort(rows)

    def _by_margin(self, setup, k, order):
        """By the implicit reward margin under a policy trained on the whole pool."""
        table = self.pools[setup.seed]
        trained, tokens = self.study.train(setup, table).policy, self.study.tokens(setup, table)
        margins = evaluate.pair_margins(trained, setup.reference, tokens)
        return pair_controls.by_margin(margins, k, order=order)

    def _held_out_losses(self, setup):
        """DPO loss of every pair under a policy trained on the other half of the pool."""
        table = self.pools[setup.seed]
        g = generator(setup.seed, "halves")
        half, margins = g.permutation(len(table)) % 2, np.zeros(len(table))
        for h in (0, 1):
            own, other = (table[half == side].reset_index(drop=True) for side in (h, 1 - h))
            trained = self.study.train(setup, other).policy
            tokens = self.study.tokens(setup, own)
            margins[half == h] = evaluate.pair_margins(trained, setup.reference, tokens)
        return np.logaddexp(0, -self.settings.beta * margins)
