"""Scorers on frozen hidden states: linear heads on a policy that is never trained.

A pretrained network may know more of a response than a small one can learn from a thousand pairs.
So nothing but heads is fitted: on the mean over a response's tokens and on its last
token, at up to five depths, so ten heads, with the losses of `scorer_training` and a penalty on the
weights; a score is their mean.

    reward   -log sigma(r_w - r_l)                                              Bradley-Terry
    cost     -log sigma(c_u - c_s) - log sigma(s_u c_u) - log sigma(s_s c_s)    arXiv 2310.12773

Both are logistic regressions without an intercept, on differences of states and on states with a
constant, so scikit-learn fits them. How good they are is measured by cross-validation over prompts:
every response is scored by heads that have seen no pair of its prompt.

*Differs from the papers:* their scorers are networks of 7B weights, all of them trained. The unit
is that of a penalised regression, smaller than the nat of the labels.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression

from ..engine import cache, distributed
from ..evaluate import bag_of_words
from ..logprobs import layer_states
from ..packing import pack, prefix_nodes
from ..pairs import label, some_of_every_source, splits
from .scorer import BLOCK, Scorer
from .scorer_training import cost_labels, encode_rows, one_more, with_cost_labels, with_order
from .weights import positions

DEPTHS = (0.2, 0.4, 0.6, 0.8, 1.0)  # of the network: which layers are read
BATCH = 32  # responses in one pass
# C of scikit-learn: its default. On 975 PKU pairs 0.01 to 10 order 67 to 72 % of held-out pairs.
PENALTY = 1.0
FOLDS = 5
LONGEST = 256  # tokens that are read of prompt and response; more where training reads more
LARGEST = 4000  # pairs: of a 7B model their states take 1.3 GB


# ---------------------------------------------------------------- hidden states
class States:
    """Hidden states of responses under a frozen policy: (rows) -> float32 [N, H, D].

    A row is [prompt ids, response ids], and H counts layers by pooling, mean and last. What heads
    are fitted to is computed once and kept, in memory and on disk. Below float32 a state depends a
    little on what it was computed with.
    """

    def __init__(self, policy, *, max_length=0):
        self.policy = policy
        longest = min(max(LONGEST, max_length), positions(policy.model.config) or math.inf)
        self.encode = functools.partial(encode_rows, policy, longest)
        depth = policy.model.config.num_hidden_layers
        self.layers = list(dict.fromkeys(round(share * depth) for share in DEPTHS))
        self.kind = f"states/{cache.key('states', policy=policy, layers=self.layers)}"
        self.known = {}
        for file in sorted(cache.path(self.kind, "").parent.glob("*.safetensors")):
            if stored := cache.load(self.kind, file.stem):
                names = (name.tobytes() for name in stored[0]["names"])
                self.known |= zip(names, stored[0]["states"])

    def of_pairs(self, table):
        """States [N, 2, H, D] of both responses of each row of a table of pairs."""
        both = [self.encode(table.prompt, table[f"response_{k}"]) for k in (0, 1)]
        found = self([row for pair in zip(*both) for row in pair], keep=True)
        return found.reshape(len(table), 2, *found.shape[1:])

    def __call__(self, rows, *, keep=False):
        names = [_name(row) for row in rows]
        missing = {name: row for name, row in zip(names, rows) if name not in self.known}
        order, found = sorted(missing, key=lambda name: _likeness(missing[name])), {}
        for start in range(0, len(order), BLOCK):
            block = order[start : start + BLOCK]
            states = self._of([missing[name] for name in block])
            found |= zip(block, states)
            if keep:
                written = np.frombuffer(b"".join(block), dtype=np.uint8).reshape(len(block), -1)
                cache.store(self.kind, cache.digest(*block), {"names": written, "states": states})
        self.known |= found if keep else {}
        found |= {name: self.known[name] for name in names if name in self.known}
        return np.stack([found[name] for name in names])

    def _of(self, rows):
        batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        return np.concatenate([self._read(batch) for batch in batches])

    @torch.no_grad()
    def _read(self, rows):
        """States [n, H, D] of some rows. The prompts' places are left out of the mean."""
        policy, (prompts, responses) = self.policy, zip(*rows)
        responses = one_more(responses, policy.pad_id)
        nodes = prefix_nodes(prompts, [responses])
        batch = pack(prompts, [responses], pad_id=policy.pad_id, nodes=nodes).to(policy.device)
        with torch.autocast(policy.device.type, torch.bfloat16, enabled=policy.bf16):
            found = layer_states(policy.model.eval(), batch, self.layers)
        lengths = [len(y) for y in responses]
        parts = [states.float().split(lengths) for states in found]
        pooled = [[s[1:].mean(0), s[-1]] for layer in parts for s in layer]
        pooled = torch.stack([torch.stack(both) for both in pooled])
        pooled = pooled.view(len(self.layers), len(rows), 2, -1).transpose(0, 1)
        return pooled.flatten(1, 2).cpu().numpy()


def _name(row):
    return bytes.fromhex(cache.digest(*(np.asarray(ids, dtype=np.int64) for ids in row)))


def _likeness(row):
    """Rows of one prompt stand side by side, prompts of like length together."""
    prompt, response = row
    return len(prompt), np.asarray(prompt).tobytes(), len(response)


# ---------------------------------------------------------------- heads
@dataclass(frozen=True)
class Heads:
    """A score of states [N, H, D]: their product with `weight` [H, D], and `bias`; float64 [N]."""

    weight: np.ndarray
    bias: float

    def __call__(self, states):
        return np.einsum("nhd,hd->n", states, self.weight) + self.bias


def fit(kind, states, table):
    """The `Heads` of labelled pairs: states float32 [N, 2, H, D] of both responses of each row."""
    weights, biases = zip(*(_head(kind, states[:, :, h], table) for h in range(states.shape[2])))
    return Heads(np.stack(weights) / len(weights), float(np.mean(biases)))


def _head(kind, states, table):
    """(weight [D], bias) of a head on states [N, 2, D], fitted to them in units of their spread."""
    every = states.reshape(-1, states.shape[-1]).astype(float)
    mean, scale = every.mean(0), (every.std(0) + 1e-6) * np.sqrt(states.shape[-1])
    one, other = ((states[:, k] - mean) / scale for k in (0, 1))
    if kind == "reward":
        better = np.where(table.better_response_id == 0, 1.0, -1.0)
        signs, rows, constant = (better,), (one - other,), (0.0,)
    else:
        signs, rows, constant = cost_labels(table), (one - other, one, other), (0.0, 1.0, 1.0)
    rows = [np.c_[x, np.full(len(x), c)] for x, c in zip(rows, constant)]
    rows = np.concatenate([sign[:, None] * x for sign, x in zip(signs, rows)])
    rows = rows[np.concatenate(signs) != 0]
    turned = np.where(np.arange(len(rows)) % 2, 1.0, -1.0)  # scikit-learn wants both classes
    model = LogisticRegression(C=PENALTY, fit_intercept=False, max_iter=1000)
    *weight, bias = model.fit(rows * turned[:, None], turned).coef_[0]
    weight = np.array(weight) / scale
    bias -= mean @ weight
    return weight, bias - (every @ weight + bias).mean() * (kind == "reward")


# ---------------------------------------------------------------- scorers
def train_probe(kind, states, table):
    """A `Scorer` of `kind` reward or cost: heads on `States`, fitted to the rows of `table` that
    have its labels.

    A reward is 0 at its mean in training, a cost above 0 is harmful. Raises ValueError where no row
    is labelled, or where no response has a safety label.
    """
    rows = labelled(kind, table)
    heads = distributed.agree(fit(kind, states.of_pairs(rows), rows))

    def made_of():
        return [kind, states.policy, states.layers, heads.weight, heads.bias]

    def forward(batch):
        return torch.from_numpy(heads(states(batch)))

    return Scorer(f"probe {kind}", kind, made_of, states.encode, forward, batch_size=BLOCK)


def labelled(kind, table):
    """The rows of a table that a reward or a cost can be fitted to, at most LARGEST."""
    rows = label(table, "better") if kind == "reward" else with_cost_labels(table)
    return some_of_every_source(rows, LARGEST)


def tells(kind, table):
    """Whether a table says enough to fit heads: two labelled pairs, and of a cost both labels."""
    if kind == "reward":
        return table.better_response_id.notna().sum() > 1
    return {-1.0, 1.0} <= set(np.concatenate(cost_labels(table)[1:]))


@dataclass(frozen=True)
class OutOfFold:
    """Scores of the pairs' own responses by heads that were fitted without their prompts, called
    as a `Scorer` is."""

    kind: str
    known: dict

    def __call__(self, prompts, responses):
        return np.array([self.known[both] for both in zip(prompts, responses)])


def cross_validated(kind, states, table, *, folds=FOLDS):
    """(`OutOfFold`, the rows of the table that it scores): each fold of prompts by heads of the
    others."""
    rows = labelled(kind, table)
    found, known = states.of_pairs(rows), {}
    for kept, out in splits(rows.prompt, folds):
        heads = distributed.agree(fit(kind, found[kept], rows.iloc[kept]))
        for k in (0, 1):
            texts = zip(rows.prompt[out], rows[f"response_{k}"][out])
            known |= zip(texts, heads(found[out, k]))
    return OutOfFold(kind, known), rows


def words_out_of_fold(kind, table, *, folds=FOLDS):
    """(the rows of `with_order`, margins [N] of word counts on them): `evaluate.bag_of_words` in
    the folds of `cross_validated`."""
    rows, ordered, margins = labelled(kind, table), [], []
    for kept, out in splits(rows.prompt, folds):
        seen, scored = (with_order(kind, rows.iloc[some]) for some in (kept, out))
        ordered.append(scored)
        margins.append(bag_of_words(seen, scored) if len(scored) else np.zeros(0))
    return pd.concat(ordered, ignore_index=True), np.concatenate(margins)
