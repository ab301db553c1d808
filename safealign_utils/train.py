"""The one training loop, on accelerate: supervised fine-tuning and preference optimisation.

Batches are rows of a permutation fixed by the seed. The state of a long run is written to disk and
resumed exactly (weights, optimiser, schedule, random states, position); a finished run is stored by
content, so the same question is never trained twice. A loss that is not finite stops the run before
the weights move.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from .engine import cache, distributed
from .engine import lora as adapters
from .engine.checkpoint import Checkpoint, Damaged, accelerator_for, whole
from .engine.streams import generator
from .engine.torch_setup import give_back
from .logprobs import LogProbs, ReferenceTable, log_ratios, reads_alike, reference_logprobs
from .loss import check_levers, ordered, preference_loss
from .packing import length_mask, pack
from .policy import Policy, seeded
from .tokens import TokenPairs

CLIP = 1.0  # gradient norm
BETAS = (0.9, 0.98)  # of AdamW: the runs are shorter than the memory of the usual 0.999
WARM_UP = 0.1  # share of the steps


@dataclass(frozen=True)
class Training:
    """How a training runs: `steps` batches of `batch_size` rows, AdamW's highest `learning_rate`,
    `seed`.

    `lora` is the rank of an adapter that is trained in place of the weights (0: none). A batch is
    computed in `accumulate` parts, and with `checkpointing` the layers' inner states are computed
    twice instead of stored; neither changes the result but by rounding. With `by_prompt` a batch of
    pairs holds `batch_size` prompts, each with all its pairs, and every prompt counts the same:
    where a few answers make many pairs, each answer is computed once. The state is written to
    disk every `save_every` steps; 0: every 30 s, or more seldom where that would take over 5 % of
    the time.
    """

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    lora: int = 0
    accumulate: int = 1
    checkpointing: bool = False
    by_prompt: bool = False
    save_every: int = 0


@dataclass(frozen=True)
class Trained:
    """A trained policy, its log (one row a step), whether it came from the cache, and the seconds
    it took then.

    `module` is what was trained: a `LogProbs` of the policy, or what `run_training` was given as
    `wrap`.
    """

    policy: Policy
    log: pd.DataFrame
    cached: bool
    seconds: float = 0.0
    module: torch.nn.Module | None = None


class NotFinite(RuntimeError):
    """The loss or its gradient is not finite; the last good state is on disk."""


# ---------------------------------------------------------------- what is trained
def fine_tune(policy, prompts, responses, *, use_cache=True, **training):
    """Supervised fine-tuning: minimise the negative log-likelihood per response (nats, summed over
    its tokens).

    `prompts`, `responses`: lists of N int arrays, responses with their end-of-sequence token.
    `training`: the fields of `Training`. Returns a `Trained`.
    """
    training = Training(**training)
    policy = adapters.prepare(policy, rank=training.lora, seed=training.seed)

    def loss_of(module, rows):
        chosen = [responses[i] for i in rows]
        batch = pack([prompts[i] for i in rows], [chosen], pad_id=policy.pad_id)
        logp, _ = module(batch.to(policy.device))
        return -logp.sum(), {"loss": -logp.sum().item()}

    order = batch_order(len(prompts), training.steps, training.batch_size, training.seed)
    asked = dict(policy=policy, prompts=list(prompts), responses=list(responses))
    asked = asked if use_cache else None
    return run_training(policy, loss_of, order, training, asked=asked, name="SFT", dropout=True)


def align(
    reference,
    tokens,
    *,
    beta,
    start=None,
    leak_weight=0.0,
    token_lever=None,
    link=None,
    use_cache=True,
    **training,
):
    """Preference optimisation with the one loss; returns a `Trained`.

    `reference` is the frozen policy, `tokens` a `tokens.TokenPairs`, `start` where the policy
    begins (default: the reference); the other levers are those of `Objective`, and `training` are
    the fields of `Training`. With `lora` the reference is the base that the adapter stands on
    (`Policy.base`); a `start` that has an adapter goes on with it. The cache knows levers by their
    content (`engine/content.py`); one without is refused with a ValueError, but for
    `use_cache=False`.

    Differs from the paper (arXiv 2305.18290, its authors' code): AdamW with cosine decay instead of
    RMSprop with warm-up; responses end in the tokenizer's own end-of-sequence token.
    """
    training = Training(**training)
    check_levers(tokens.p, tokens.margin, beta)
    if leak_weight and reference.grammar is None:
        why = "only the world has a grammar; use 0 on real text"
        raise ValueError(f"leak_weight={leak_weight}: {why}")
    reference = reference.base if training.lora else reference
    start = adapters.prepare(start or reference, rank=training.lora, seed=training.seed)
    frozen = reference_logprobs(reference, tokens) if reads_alike(reference) else None
    groups = rows_by_prompt(tokens) if training.by_prompt else None
    levers = dict(beta=beta, leak_weight=leak_weight, token_lever=token_lever, link=link)
    frozen = frozen or LogProbs(reference).eval()
    objective = Objective(start, tokens, frozen, **levers, groups=groups)
    order = batch_order(len(groups or tokens), training.steps, training.batch_size, training.seed)
    asked = dict(reference=reference, start=start, tokens=tokens, **levers) if use_cache else None
    return run_training(start, objective, order, training, asked=asked, name="DPO")


@dataclass(frozen=True)
class Objective:
    """The one loss of pairs with its levers: called with a module and rows, it returns (their sum,
    sums to log).

    `reference` is read from a table, or live where a number depends on its batch (below float32).
    `token_lever(logratio_w, logratio_l, mask_w, mask_l, rows)` returns token masks; `link(z, beta)`
    replaces the logistic loss of the logit z [B] by another (BFPO, BSO). `leak_weight` times -mean
    over responses of sum_t log(mass that the grammar allows next) is added: that penalty is ours.
    With `groups` (`rows_by_prompt`) it is called with numbers of groups, and returns sums over
    them of the means over each one's pairs.
    """

    policy: Policy
    tokens: TokenPairs
    reference: ReferenceTable | LogProbs
    beta: float
    leak_weight: float = 0.0
    token_lever: Callable | None = None
    link: Callable | None = None
    groups: list | None = None

    def __call__(self, module, rows):
        rows, weight = self._pairs(rows)
        ratios = log_ratios(module, self.tokens, rows, self.policy, self.reference)
        logratio_w, logratio_l, log_allowed = ratios
        tokens_w, tokens_l = self._token_masks(logratio_w, logratio_l, rows)
        out = preference_loss(
            logratio_w,
            logratio_l,
            beta=self.beta,
            p=torch.as_tensor(self.tokens.p[rows]).to(logratio_w),
            margin=torch.as_tensor(self.tokens.margin[rows]).to(logratio_w),
            tokens_w=tokens_w,
            tokens_l=tokens_l,
        )
        if self.link is not None:
            out = replace(out, loss=self.link(out.z, self.beta))
        total, leak = self._sum(out.loss, weight), 0.0
        if self.leak_weight:
            penalty = -log_allowed.sum() / 2  # two responses a pair
            total, leak = total + self.leak_weight * penalty, penalty.item()
        logged = {"loss": out.loss, "chosen": out.h_w, "rejected": out.h_l, "z": out.z}
        logged["accuracy"] = ordered(out.h_w - out.h_l)
        sums = {name: self._sum(values, weight).item() for name, values in logged.items()}
        return total, sums | {"leak_penalty": leak}

    def _pairs(self, rows):
        """The pairs of a batch, and the weight of each (None: 1)."""
        if self.groups is None:
            return rows, None
        pairs = [self.groups[i] for i in rows]
        return np.concatenate(pairs), np.concatenate([np.full(len(p), 1 / len(p)) for p in pairs])

    @staticmethod
    def _sum(values, weight):
        if weight is None:
            return values.sum()
        return (torch.as_tensor(weight).to(values) * values).sum()

    def _token_masks(self, logratio_w, logratio_l, rows):
        if self.token_lever is None:
            return None, None
        lengths = (self.tokens.lengths_w[rows], self.tokens.lengths_l[rows])
        masks = [length_mask(n).to(logratio_w.device) for n in lengths]
        return self.token_lever(logratio_w.detach(), logratio_l.detach(), *masks, rows)


def rows_by_prompt(tokens):
    """The pairs of every prompt, a list of int arrays, in the order in which prompts first come."""
    rows = {}
    for row, prompt in enumerate(tokens.prompts):
        rows.setdefault(np.asarray(prompt).tobytes(), []).append(row)
    return [np.array(found) for found in rows.values()]


# ---------------------------------------------------------------- the loop
def run_training(policy, loss_of, order, training, *, asked, name, wrap=LogProbs, dropout=False):
    """Train a copy of a policy on the batches `order` int [steps, B], or find it in the cache: a
    `Trained`.

    `loss_of(module, rows)` returns the loss summed over rows and sums of what is logged. `asked`
    names all that decides the result but for `order`, `training` and what is trained (None: no
    cache); `name` is its kind. `wrap(policy)` builds the module that `loss_of` calls: its `model`
    is the policy's; what else it has (a head) is trained, stored and loaded with it. A parameter
    that its forward never uses must be frozen. `dropout` leaves the network's own dropout on;
    preference training has it off, or it would not start at the reference. Several processes: all
    call this with the same arguments, and all get the same back.
    """
    start, folder, key = time.perf_counter(), None, None
    with seeded(training.seed):
        module = wrap(policy.copy()).eval()
    if asked is not None:
        trained = [place for place, p in module.named_parameters() if p.requires_grad]
        how = dict(order=order, training=training, trained=trained, wrap=wrap, dropout=dropout)
        key = distributed.agree(cache.key(name, **how, **asked))
        folder = cache.root() / "partial" / key
        if found := distributed.found(lambda: _load(key, module)):
            log, info = found
            return Trained(replace(policy, model=module.model), log, True, info["seconds"], module)
    accelerator = accelerator_for(policy)
    give_back()  # what was read before is no longer needed
    try:
        with seeded(training.seed), _mode(module, dropout, training.checkpointing):
            net, log = _optimise(module, loss_of, order, training, accelerator, folder, name)
    except Damaged:  # the state on disk; it is gone by now
        again = dict(asked=asked, name=name, wrap=wrap, dropout=dropout)
        return run_training(policy, loss_of, order, training, **again)
    module = whole(accelerator, net, lambda: wrap(policy.copy())).eval()
    accelerator.free_memory()
    give_back()
    seconds = time.perf_counter() - start
    if key and distributed.rank() == 0:
        store_trained(key, module, log, seconds=seconds)
        Checkpoint.remove(folder)
    return Trained(replace(policy, model=module.model), log, False, seconds, module)


def _optimise(module, loss_of, order, training, accelerator, folder, name):
    """Run the batches with AdamW, linear warm-up and cosine decay to 0: (the prepared module, the
    log)."""
    steps, rate = len(order), training.learning_rate
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=BETAS, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, steps))
    net, optimizer = accelerator.prepare(module, optimizer)
    state = Checkpoint(accelerator, schedule, folder, training.save_every)
    for step in _progress(name, state.step, steps):
        sums = one_batch(net, loss_of, order[step], accelerator, training.accumulate)
        norm = _number(accelerator.clip_grad_norm_(net.parameters(), CLIP))
        if not (math.isfinite(sums["loss"]) and math.isfinite(norm)):
            optimizer.zero_grad()
            raise NotFinite(_not_finite(name, sums["loss"], norm, order, step, state.write()))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        state.add({k: total / len(order[step]) for k, total in sums.items()}, norm)
        if state.due(steps):
            state.write()
    # Accelerator, schedule and state refer to one another: the collector would free them late.
    optimizer.state.clear()
    return net, pd.DataFrame(state.log).astype({"step": float})


def one_batch(net, loss_of, rows, accelerator, accumulate):
    """Backward through one batch, in `accumulate` parts, by every process its own rows: sums over
    all of them.

    The gradient is that of the mean over the whole batch.
    """
    processes, sums = distributed.count(), {}
    mine = rows[distributed.rank() :: processes]
    parts = np.array_split(mine, min(accumulate, -(-len(rows) // processes)))  # as many everywhere
    for number, part in enumerate(parts, 1):
        weight = processes if len(part) else 0
        part = part if weight else rows[:1]  # DDP and FSDP wait for all
        with contextlib.nullcontext() if number == len(parts) else accelerator.no_sync(net):
            loss, found = loss_of(net, part)
            accelerator.backward(loss * weight / len(rows))
        sums = {k: sums.get(k, 0.0) + (v if weight else 0.0) for k, v in found.items()}
    return distributed.total(sums)


def batch_order(n, steps, batch_size, seed):
    """Row numbers int [steps, B]: one permutation of the n rows after another."""
    g = generator(seed, "batch order")
    size = min(batch_size, n)
    epochs = -(-steps * size // n)
    rows = np.concatenate([g.permutation(n) for _ in range(epochs)])
    return rows[: steps * size].reshape(steps, size)


def rate_at(step, steps):
    """The share of the highest learning rate at a step: linear warm-up, then cosine decay to 0."""
    warm = max(1, round(WARM_UP * steps))
    decay = 0.5 * (1 + math.cos(math.pi * max(step - warm, 0) / max(steps - warm, 1)))
    return min((step + 1) / warm, decay)


def _not_finite(name, loss, norm, order, step, place):
    return (
        f"{name}: loss {loss / len(order[step])}, gradient norm {norm} at step {step + 1} of "
        f"{len(order)}, batch rows {order[step].tolist()}; the last good state is kept in {place}; "
        "try a lower learning_rate"
    )


def _progress(name, first, steps):
    watched = sys.stderr.isatty()
    left = range(first, steps)
    return tqdm(left, desc=name, initial=first, total=steps, disable=not watched, leave=False)


def _number(norm):
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


@contextlib.contextmanager
def _mode(module, dropout, checkpointing):
    """Set a module's mode for a block. transformers checkpoints in train mode only; dropout is
    silenced by hand."""
    module.train(dropout or checkpointing)
    silenced = _dropouts(module) if checkpointing and not dropout else []
    if checkpointing:
        module.model.activation_checkpointing_enable({"use_reentrant": False})
        module.model.disable_input_require_grads()  # a hook for the other kind
    for part, name, _ in silenced:
        setattr(part, name, 0.0)
    yield
    for part, name, value in silenced:
        setattr(part, name, value)
    if checkpointing:
        module.model.activation_checkpointing_disable()


def _dropouts(module):
    """(part, name, value) of every dropout probability of a module."""
    found = []
    for part in module.modules():
        named = [name for name in vars(part) if "dropout" in name]
        names = ["p"] if isinstance(part, torch.nn.Dropout) else named
        values = [(part, name, getattr(part, name)) for name in names]
        found += [entry for entry in values if isinstance(entry[2], float)]
    return found


# ---------------------------------------------------------------- finished runs on disk
def store_trained(key, module, log, **info):
    """What training changed, and the log of a finished run, as one cache entry, with further
    `info`."""
    arrays = {name: tensor.cpu().numpy() for name, tensor in adapters.trained_state(module).items()}
    arrays |= {f"log.{c}": log[c].to_numpy(np.float64) for c in log}
    cache.store("policy", key, arrays, log=list(log), **info)


def load_trained(key, policy):
    """(policy with the stored weights, log, info) of a finished run, or None. `policy` gives
    everything else."""
    trained = policy.copy()
    return (trained, *found) if (found := _load(key, trained.model)) else None


def _load(key, module):
    """Put the stored weights of a finished run into a module of its own: (log, info), or None.

    Only what training changes is written to: frozen weights are shared with the caller's policy. An
    entry that holds other weights than these counts as absent.
    """
    stored = cache.load("policy", key)
    if stored is None:
        return None
    arrays, info = stored
    log = pd.DataFrame({c: arrays.pop(f"log.{c}") for c in info["log"]})
    return (log, info) if adapters.put_trained(module, arrays) else None
