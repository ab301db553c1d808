"""A small reward model and a small cost model, trained by the kit on the preferences themselves.

With them everything that asks for a reward and a cost of free text runs without the 7B scorers.
Both are a copy of the reference policy's network with a linear head, read at a response's last
token (its end-of-sequence token).

    reward   L = -log sigma(r_w - r_l)                                               Bradley-Terry
    cost     L = -log sigma(c_u - c_s) - log sigma(s_u c_u) - log sigma(s_s c_s)     s = +1 unsafe,
                                                                                         -1 safe

The cost loss is Safe RLHF's (arXiv 2310.12773; its code's `sequence-wise` loss): u is the less safe
response of the pair, and the two sign terms give the cost its origin, 0. A reward has none: it is
centred on its mean over the training responses.

*Differs from the paper:* the network is the reference policy's, whatever its size; both responses
share one pass over the prompt; AdamW with cosine decay trains all weights; no penalty on the
squared cost; a pair without a label keeps the terms that it has labels for; the reward is centred.
"""

import functools
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import logsigmoid

from ..engine import lora as adapters
from ..intervals import SHARE
from ..logprobs import hidden_states
from ..loss import ordered
from ..packing import pack
from ..pairs import SAFE, label, tokenize
from ..templates import encode_responses
from ..train import Training, batch_order, run_training
from .answer_metrics import estimate
from .scorer import Scorer

SCORED = 32  # responses in one pass of a trained scorer
# {loss of the cost: (mixed pairs are ordered too, sharpness of the sign terms)}. As published; with
# the order of pairs of equal status alone; with that and signs that ask for no more than a sign.
COST_LOSSES = {"safe_rlhf": (True, 1.0), "equal_status": (False, 1.0), "hinge": (False, 20.0)}
FEWEST = 20  # pairs of equal status with an order, below which no unit is looked for


# ---------------------------------------------------------------- the losses
def reward_loss(score_w, score_l):
    """Bradley-Terry, per pair [B]: -log sigma of how much higher the better response scores."""
    return -logsigmoid(score_w - score_l)


def cost_loss(cost_0, cost_1, *, costlier, sign_0, sign_1, sharpness=1.0):
    """Safe RLHF's cost loss, per pair [B], of the costs of response 0 and response 1.

    `costlier` [B] is +1 where response 0 is the less safe one, -1 where response 1 is; `sign_k` [B]
    is +1 for an unsafe response, -1 for a safe one. 0 (not known) leaves a term out. A sign term is
    -log sigma(sharpness sign c) / sharpness: 1 is the paper's, a large one a hinge at 0.
    """
    order = -logsigmoid(costlier * (cost_0 - cost_1)) * (costlier != 0)
    terms = ((sign_0, cost_0), (sign_1, cost_1))
    signs = [-logsigmoid(sharpness * sign * c) * (sign != 0) / sharpness for sign, c in terms]
    return order + signs[0] + signs[1]


def cost_labels(table, *, mixed=True):
    """(costlier, sign_0, sign_1), float64 [N] each, as `cost_loss` reads them; 0 for a missing
    label.

    The less safe response is the one that safer_response_id does not name, without it the unsafe
    one of a pair with one of each. That says nothing about either of two safe or two unsafe ones.
    Without `mixed` a pair with one of each has no less safe response, its signs say it already.
    """
    sign_0, sign_1 = (_numbers(table[c], {True: -1.0, False: 1.0}).fillna(0.0) for c in SAFE)
    unsafe_one = sign_0.where(sign_0 * sign_1 < 0, 0.0)
    costlier = _numbers(table.safer_response_id, {0: -1.0, 1: 1.0}).fillna(unsafe_one)
    if not mixed:
        costlier = costlier.where(unsafe_one == 0, 0.0)
    return costlier.to_numpy(), sign_0.to_numpy(), sign_1.to_numpy()


def has_unit(table):
    """Which pairs say by how much: both responses safe or both unsafe, and one named the safer;
    bool [N]. That order alone has a unit, the nat: a sign has none, and where it can be told from
    the text, neither has the order of a mixed pair, as a larger gap is always likelier."""
    order, sign_0, sign_1 = cost_labels(table, mixed=False)
    return (sign_0 * sign_1 > 0) & (order != 0)


def with_cost_labels(table):
    """The rows that say something of safety. Raises ValueError where no response has a safety
    label: a cost of them would have no origin."""
    labels = np.stack(cost_labels(table), axis=1)
    if not (labels[:, 1:] != 0).any():
        why = f"no response has a safety label ({SAFE[0]}, {SAFE[1]})"
        raise ValueError(f"data: {why}; the cost would have no origin")
    return table[(labels != 0).any(axis=1)].assign(chosen=0, p=1.0, margin=0.0)


def _numbers(labels, named):
    return labels.map(named).astype(float)


# ---------------------------------------------------------------- training
class Score(torch.nn.Module):
    """A network with a linear head that scores the places `ends` [n] of a `Packed` batch: [n].

    In float32 or better. The head starts at 0: every score is 0, the reward's loss ln 2, the cost's
    3 ln 2.
    """

    def __init__(self, policy):
        super().__init__()
        self.model, self.bf16 = policy.model, policy.bf16
        unused, embedding = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        if unused.weight is not embedding.weight:
            unused.requires_grad_(False)
        dtype = torch.promote_types(self.model.dtype, torch.float32)
        self.head = torch.nn.Linear(unused.in_features, 1, dtype=dtype, device=policy.device)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, batch, ends):
        with torch.autocast(batch.ids.device.type, torch.bfloat16, enabled=self.bf16):
            hidden = hidden_states(self.model, batch)[ends]
        return self.head(hidden.to(self.head.weight.dtype))[:, 0]


def train_reward(reference, table, *, max_length=256, **training):
    """A reward model of pairs with better_response_id: a `Scorer`, 0 = its mean in training.

    `reference` gives network, tokenizer and template; `training` are the options of the training
    loop (seed, steps, batch_size, learning_rate, ...). The unit is the nat: a difference of 1 is a
    preference of sigma(1). Raises ValueError where no row is labelled.
    """
    rows = label(table, "better")

    def loss_of_pairs(better, worse, _):
        loss = reward_loss(better, worse)
        return loss, {"loss": loss, "accuracy": ordered(better - worse)}

    trained = _fit("reward", reference, rows, loss_of_pairs, max_length, training)
    raw = _scorer("reward", trained, max_length, training["seed"])
    scores = [raw(rows.prompt, rows[f"response_{k}"]) for k in (0, 1)]
    trained.module.head.bias.data.sub_(float(np.mean(scores)))
    return _scorer("reward", trained, max_length, training["seed"])


def train_cost(reference, table, *, max_length=256, loss="auto", **training):
    """A cost model of pairs with safety labels: a `Scorer`, above 0 = harmful.

    `loss` is one of COST_LOSSES, or "auto": "hinge", whose unit came nearest to the oracle's in the
    made world, where the pairs have a unit, else Safe RLHF's. Rows that say nothing of safety are
    left out. Arguments as in `train_reward`. Raises ValueError for another loss, for one whose unit
    no pair has, where no row is left, or where no response has a safety label: the cost would have
    no origin.
    """
    loss = loss_named(loss, table)
    mixed, sharpness = COST_LOSSES[loss]
    rows = check_unit(table, loss)
    labels = np.stack(cost_labels(rows, mixed=mixed), axis=1)

    def loss_of_pairs(cost_0, cost_1, number):
        costlier, sign_0, sign_1 = torch.from_numpy(labels[number].T.copy()).to(cost_0)
        signs = dict(costlier=costlier, sign_0=sign_0, sign_1=sign_1)
        loss = cost_loss(cost_0, cost_1, **signs, sharpness=sharpness)
        right = ordered(cost_0 * sign_0) * sign_0.abs() + ordered(cost_1 * sign_1) * sign_1.abs()
        known = (sign_0.abs() + sign_1.abs()).double()
        return loss, {"loss": loss, "accuracy": right / known.clamp(min=1)}

    trained = _fit("cost", reference, rows, loss_of_pairs, max_length, training)
    return _scorer("cost", trained, max_length, training["seed"])


def loss_named(loss, table):
    """A name of COST_LOSSES: what "auto" takes for these pairs, or `loss` itself. Raises ValueError
    for an unknown one."""
    if loss == "auto":
        return "hinge" if has_unit(table).sum() >= FEWEST else "safe_rlhf"
    if loss not in COST_LOSSES:
        raise ValueError(f"loss={loss!r}: choose one of auto, {', '.join(COST_LOSSES)}")
    return loss


def check_unit(table, loss, name="loss"):
    """The rows of pairs that say something of safety. Raises ValueError, which calls the parameter
    by `name`, where a loss takes the unit of the cost from pairs that are too few."""
    rows = with_cost_labels(table)
    known = int(has_unit(rows).sum())
    if not COST_LOSSES[loss][0] and known < FEWEST:
        why = f"only {known} pairs of equal status name the safer response, the unit needs {FEWEST}"
        raise ValueError(f"{name}={loss!r}: {why}; use safe_rlhf")
    return rows


def _fit(kind, reference, rows, loss_of_pairs, max_length, training):
    """Train a copy of the reference's network with a head on (first, second) responses of pairs.

    `loss_of_pairs(first, second, rows)` gives losses [B] and what is logged.
    """
    training = Training(**training)
    if training.lora:
        rank, seed = training.lora, training.seed
        reference = adapters.prepare(reference.base, rank=rank, seed=seed)
    else:
        reference = reference.merged()
    tokens = tokenize(rows, reference, max_length=max_length)
    chosen, rejected = (one_more(y, reference.pad_id) for y in (tokens.chosen, tokens.rejected))
    tokens = replace(tokens, chosen=chosen, rejected=rejected, states_w=None, states_l=None)
    order = batch_order(len(tokens), training.steps, training.batch_size, training.seed)

    def loss_of(module, number):
        lengths = np.stack([tokens.lengths_w[number], tokens.lengths_l[number]], axis=1)
        score = module(tokens.batch(number, reference).to(reference.device), _ends(lengths))
        loss, stats = loss_of_pairs(score[0::2], score[1::2], number)
        return loss.sum(), {name: values.sum().item() for name, values in stats.items()}

    asked = dict(reference=reference, tokens=tokens, loss=loss_of_pairs)
    return run_training(reference, loss_of, order, training, asked=asked, name=kind, wrap=Score)


def one_more(responses, pad_id):
    """Responses with one id behind their end: places are one before what is predicted."""
    return [np.append(y, pad_id) for y in responses]


def _ends(lengths):
    """Where `pack` reads each response's last token, for `one_more` of lengths int [n, J]."""
    return torch.from_numpy(np.cumsum(lengths.ravel()) - 1)


def encode_rows(policy, max_length, prompts, responses):
    """N rows [prompt ids, response ids] of texts, as a policy reads them in training. What a policy
    has sampled is read too where no data could hold it: a chat template would rewrite it."""
    if policy.grammar is not None:
        words = [np.array(ids) for ids in policy.tokenizer(list(prompts))["input_ids"]]
        return [list(row) for row in zip(words, encode_responses(responses, policy.tokenizer))]
    table = pd.DataFrame(dict(prompt=prompts, response_0=responses, response_1=responses))
    table = table.assign(chosen=0, p=1.0, margin=0.0)
    tokens = tokenize(table, policy, max_length=max_length, sampled=True)
    return [list(row) for row in zip(tokens.prompts, tokens.chosen)]


def _scorer(kind, trained, max_length, seed):
    policy, module = trained.policy, trained.module.eval()
    encode = functools.partial(encode_rows, policy, max_length)

    def forward(rows):
        prompts, responses = zip(*rows)
        responses = one_more(responses, policy.pad_id)
        batch = pack(prompts, [responses], pad_id=policy.pad_id).to(policy.device)
        return module(batch, _ends(np.array([len(y) for y in responses])))

    def made_of():
        return [kind, policy, dict(module.head.state_dict())]

    name = f"kit {kind} (seed {seed})"
    return Scorer(name, kind, made_of, encode, forward, SCORED, trained.log)


# ---------------------------------------------------------------- how good they are
def pair_accuracy(scorers, table):
    """The `Estimate` of the share of held-out pairs ordered rightly by one scorer a seed.

    A reward must rank the better response higher, a cost the less safe one; a tie counts half. Rows
    without that label are left out; the hits of a pair are averaged over seeds.
    """
    rows = with_order(scorers[0].kind, table)
    hits = [hits_of(pair_margins(scorer, rows)) for scorer in scorers]
    return estimate(np.mean(hits, axis=0), rows.prompt, SHARE)


def with_order(kind, table):
    """The rows that say which response has the higher reward or the lower cost, that is `chosen`
    there."""
    if kind == "cost":
        first = cost_labels(table)[0]
        chosen, known = np.where(first > 0, 1, 0), first != 0
    else:
        chosen = table.better_response_id.fillna(0).astype(int)
        known = table.better_response_id.notna()
    return table.assign(chosen=chosen, p=1.0, margin=0.0)[known].reset_index(drop=True)


def pair_margins(scorer, table):
    """By how much a scorer puts the chosen response before the rejected one, [N]: its reward
    higher, or its cost lower."""
    gap = scorer(table.prompt, table.response_0) - scorer(table.prompt, table.response_1)
    sign = np.where(table.chosen == 0, 1.0, -1.0)
    return gap * (-sign if scorer.kind == "cost" else sign)


def hits_of(margins):
    """1 for a pair that is ordered rightly, 0.5 for a tie: [N]."""
    return ordered(torch.as_tensor(margins)).numpy()


def harmless_accuracy(costs, table):
    """How well cost models (one a seed) tell safe from unsafe held-out responses: a DataFrame.

    Rows: `accuracy` (the cost's sign agrees with the label), `missed` (unsafe responses at or below
    0), `false_alarm` (safe ones above 0), and `constant` (accuracy of always giving the more
    frequent label). Columns: share, low, high, n (responses). Both responses of a pair count, in an
    interval over prompts.
    """
    _, *signs = cost_labels(table)
    sign, prompts = np.concatenate(signs), np.tile(table.prompt.to_numpy(), 2)
    scores = [[cost(table.prompt, table[f"response_{k}"]) for k in (0, 1)] for cost in costs]
    alarm = np.mean([np.concatenate(of_both) > 0 for of_both in scores], axis=0)
    usual = 1 if (sign > 0).sum() > (sign < 0).sum() else -1
    rows = {
        "accuracy": (sign != 0, np.where(sign > 0, alarm, 1 - alarm)),
        "missed": (sign > 0, 1 - alarm),
        "false_alarm": (sign < 0, alarm),
        "constant": (sign != 0, sign == usual),
    }
    out = {k: estimate(hits[there], prompts[there], SHARE) for k, (there, hits) in rows.items()}
    columns = ["share", "low", "high", "n"]
    return pd.DataFrame.from_dict(out, orient="index", columns=columns).rename_axis("name")
