"""The one training loop, on accelerate: supervised fine-tuning and preference optimisation.

Batches are rows of a permutation fixed by the seed; the state of a long run is kept on disk and resumed
exactly (weights, optimiser, schedule, random states, position); a finished run is stored by content, so
the same question is never trained twice. A loss that is not finite stops the run before the weights move.
"""

import contextlib
import math
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from .engine import cache, distributed
from .engine import lora as adapters
from .engine.checkpoint import Damaged, Kept, accelerator_for, whole
from .engine.streams import generator
from .logprobs import LogProbs, log_ratios, reads_alike, reference_logprobs
from .loss import check_levers, ordered, preference_loss
from .packing import length_mask, pack
from .policy import Policy, seeded

CLIP = 1.0  # gradient norm
BETAS = (0.9, 0.98)  # of AdamW: the runs are shorter than the memory of the usual 0.999
WARM_UP = 0.1  # share of the steps


@dataclass(frozen=True)
class Trained:
    """A trained policy, its log (one row a step), whether it came from the cache, and the seconds it took then.

    `module` is what was trained: a `LogProbs` of the policy, or what `run_training` was given as `wrap`.
    """

    policy: Policy
    log: pd.DataFrame
    cached: bool
    seconds: float = 0.0
    module: torch.nn.Module | None = None


class NotFinite(RuntimeError):
    """The loss or its gradient is not finite; the last good state is on disk."""


def batch_order(n, steps, batch_size, seed):
    """Row numbers int [steps, B]: one permutation of the n rows after another."""
    g = generator(seed, "batch order")
    size = min(batch_size, n)
    epochs = -(-steps * size // n)
    return np.concatenate([g.permutation(n) for _ in range(epochs)])[: steps * size].reshape(
        steps, size
    )


# ---------------------------------------------------------------- what is trained
def fine_tune(
    policy,
    prompts,
    responses,
    *,
    seed,
    steps,
    batch_size,
    learning_rate,
    lora=0,
    lora_alpha=0.0,
    use_cache=True,
    **loop,
):
    """Supervised fine-tuning: minimise the negative log-likelihood per response (nats, summed over its tokens).

    `prompts`, `responses`: lists of N int arrays, responses with their end-of-sequence token. `lora` and
    `lora_alpha` as in `align`; `loop`: `accumulate`, `save_every`, `checkpointing` as in `run_training`.
    """
    order = batch_order(len(prompts), steps, batch_size, seed)
    policy = adapters.prepare(policy, rank=lora, alpha=lora_alpha, seed=seed)

    def loss_of(module, rows):
        batch = pack(
            [prompts[i] for i in rows], [[responses[i] for i in rows]], pad_id=policy.pad_id
        )
        logp, _ = module(batch.to(policy.device))
        return -logp.sum(), {"loss": -logp.sum().item()}

    setting = {"seed": seed, "learning_rate": learning_rate, **loop}
    asked = dict(policy=policy, prompts=list(prompts), responses=list(responses), setting=setting)
    return run_training(
        policy,
        loss_of,
        order,
        asked=asked if use_cache else None,
        name="SFT",
        dropout=True,
        **setting,
    )


def align(
    reference,
    tokens,
    *,
    beta,
    steps,
    batch_size,
    learning_rate,
    seed,
    start=None,
    leak_weight=0.0,
    token_lever=None,
    link=None,
    live_reference=False,
    lora=0,
    lora_alpha=0.0,
    use_cache=True,
    **loop,
):
    """Preference optimisation with the one loss; returns a `Trained`.

    `reference` is the frozen policy, `tokens` a `pairs.TokenPairs`, `start` where the policy begins
    (default: the reference). `leak_weight` times -mean over responses of sum_t log(mass that the grammar
    allows next) is added. `token_lever(logratio_w, logratio_l, mask_w, mask_l, rows)` returns token masks;
    `link(z, beta)` replaces the logistic loss of the logit z [B] by another (BFPO, BSO). The cache
    knows both by their content (`content.py`): fields, source, closures; what has none is refused
    with a ValueError, but for `use_cache=False`. `live_reference` computes the reference anew in
    every batch instead of reading it from the cache on disk; below float32 it always is, as there a
    number depends on its batch. `lora` is the rank of an adapter that is trained in place of the
    weights (0: no adapter), `lora_alpha` its alpha (0: 2 x rank); its reference is the base that it
    stands on (`Policy.base`); a `start` that has an adapter goes on with it. `loop`: `accumulate`,
    `save_every`, `checkpointing` as in `run_training`.

    Differs from the paper (arXiv 2305.18290, its authors' code): AdamW with cosine decay instead of RMSprop
    with warm-up; responses end in the tokenizer's own end-of-sequence token; the leak penalty is ours.
    """
    check_levers(tokens.p, tokens.margin, beta)
    if leak_weight and reference.grammar is None:
        raise ValueError(
            f"leak_weight={leak_weight}: only the world has a grammar; use 0 on real text"
        )
    reference = reference.base if lora else reference
    start = adapters.prepare(start or reference, rank=lora, alpha=lora_alpha, seed=seed)
    order = batch_order(len(tokens), steps, batch_size, seed)
    live_reference = live_reference or not reads_alike(reference)
    frozen = LogProbs(reference).eval() if live_reference else reference_logprobs(reference, tokens)

    def loss_of(module, rows):
        logratio_w, logratio_l, log_allowed = log_ratios(module, tokens, rows, start, frozen)
        kept = (None, None)
        if token_lever is not None:
            masks = [
                length_mask(n[rows]).to(logratio_w.device)
                for n in (tokens.lengths_w, tokens.lengths_l)
            ]
            kept = token_lever(logratio_w.detach(), logratio_l.detach(), *masks, rows)
        p, margin = (
            torch.as_tensor(lever[rows]).to(logratio_w) for lever in (tokens.p, tokens.margin)
        )
        out = preference_loss(
            logratio_w,
            logratio_l,
            beta=beta,
            p=p,
            margin=margin,
            tokens_w=kept[0],
            tokens_l=kept[1],
        )
        if link is not None:
            out = replace(out, loss=link(out.z, beta))
        total, leak = out.loss.sum(), 0.0
        if leak_weight:
            penalty = -log_allowed.sum() / 2  # two responses a pair
            total, leak = total + leak_weight * penalty, penalty.item()
        correct = ordered(out.h_w - out.h_l).sum().item()
        sums = {"loss": out.loss, "chosen": out.h_w, "rejected": out.h_l, "z": out.z}
        stats = {name: values.sum().item() for name, values in sums.items()}
        return total, stats | {"accuracy": correct, "leak_penalty": leak}

    setting = dict(
        beta=beta, leak_weight=leak_weight, live_reference=live_reference, seed=seed, **loop
    )
    asked = dict(
        reference=reference,
        start=start,
        tokens=tokens,
        token_lever=token_lever,
        link=link,
        setting=setting,
    )
    asked = asked | dict(learning_rate=learning_rate) if use_cache else None
    return run_training(
        start,
        loss_of,
        order,
        asked=asked,
        name="DPO",
        learning_rate=learning_rate,
        seed=seed,
        **loop,
    )


# ---------------------------------------------------------------- the loop
def run_training(policy, loss_of, order, *, asked, name, wrap=LogProbs, **loop):
    """Train a copy of a policy, or find it in the cache: a `Trained`.

    `asked` names all that decides the result but for `order` and what is trained (None: no cache);
    `name` is its kind. `wrap(policy)` builds the module that `loss_of(module, rows)` calls: its
    `model` is the policy's; what else it has (a head) is trained, stored and loaded with it. A
    parameter that its forward never uses must be frozen. `loop` goes to `_run`. Several processes:
    all call this with the same arguments, and all get the same back.
    """
    start = time.perf_counter()
    with seeded(loop["seed"]):
        module = wrap(policy.copy()).eval()
    key = None
    if asked is not None:
        trained = [place for place, p in module.named_parameters() if p.requires_grad]
        key = distributed.agree(cache.key(name, order=order, trained=trained, wrap=wrap, **asked))
    if key and (found := distributed.found(lambda: _load(key, module))):
        log, info = found
        return Trained(replace(policy, model=module.model), log, True, info["seconds"], module)
    place = cache.root() / "partial" / key if key else None
    try:
        module, log = _run(
            module, policy, loss_of, order, place=place, wrap=wrap, name=name, **loop
        )
    except Damaged:  # the state that was kept; it is gone by now
        return run_training(policy, loss_of, order, asked=asked, name=name, wrap=wrap, **loop)
    seconds = time.perf_counter() - start
    if key and distributed.rank() == 0:
        store_trained(key, module, log, seconds=seconds)
        Kept.remove(place)
    return Trained(replace(policy, model=module.model), log, False, seconds, module)


def _run(
    module,
    policy,
    loss_of,
    order,
    *,
    place,
    wrap,
    name,
    learning_rate,
    seed,
    dropout=False,
    accumulate=1,
    save_every=0,
    checkpointing=False,
):
    """Run the batches `order` [steps, B] with AdamW, linear warm-up and cosine decay to 0: (module, log).

    `dropout` leaves the network's own dropout on; preference training has it off, or it would not start at
    the reference. `loss_of(module, rows)` returns the loss summed over rows and sums of what is logged. A
    batch is worked off in `accumulate` parts, by every process its own rows; gradients and sums are those of
    the whole batch. `checkpointing` computes the layers' inner states twice instead of keeping them. The state is
    kept every `save_every` steps, 0: every 30 s, or more seldom where that would take over 5 % of the time.
    """
    steps, size = order.shape
    accelerator, n = accelerator_for(policy), distributed.count()
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=learning_rate, betas=BETAS, weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: rate_at(s, steps))
    with seeded(seed), _training(module, dropout, checkpointing):
        net, optimizer = accelerator.prepare(module, optimizer)
        kept = Kept(accelerator, schedule, place, save_every)
        bar = tqdm(
            total=steps, initial=kept.step, desc=name, disable=not sys.stderr.isatty(), leave=False
        )
        for step in range(kept.step, steps):
            mine, total = order[step][distributed.rank() :: n], {}
            parts = np.array_split(mine, min(accumulate, -(-size // n)))  # as many on every process
            for number, part in enumerate(parts, 1):
                rows, weight = (
                    (part, n) if len(part) else (order[step][:1], 0)
                )  # DDP and FSDP wait for all
                with contextlib.nullcontext() if number == len(parts) else accelerator.no_sync(net):
                    loss, stats = loss_of(net, rows)
                    accelerator.backward(loss * weight / size)
                total = {k: total.get(k, 0.0) + (v if weight else 0.0) for k, v in stats.items()}
            total = distributed.total(total | {"due": kept.due(step + 1 < steps)})
            due, norm = (
                total.pop("due"),
                _number(accelerator.clip_grad_norm_(net.parameters(), CLIP)),
            )
            if not (math.isfinite(total["loss"]) and math.isfinite(norm)):
                optimizer.zero_grad()
                raise NotFinite(
                    f"{name}: loss {total['loss'] / size}, gradient norm {norm} at step {step + 1} of {steps}, "
                    f"batch rows {order[step].tolist()}; the last good state is kept in {kept.write()}; "
                    "try a lower learning_rate"
                )
            optimizer.step(), schedule.step(), optimizer.zero_grad()
            kept.step = step + 1
            kept.rows.append(
                {"step": step + 1, **{k: v / size for k, v in total.items()}, "grad_norm": norm}
            )
            bar.update()
            if due:
                kept.write()
        bar.close()
    optimizer.state.clear()  # accelerator, schedule and what is kept know one another: the collector would come late
    trained = whole(accelerator, net, lambda: wrap(policy.copy())).eval()
    accelerator.free_memory()
    return trained, pd.DataFrame(kept.rows).astype({"step": float})


@contextlib.contextmanager
def _training(module, dropout, checkpointing):
    """Set a module's mode for a block. transformers checkpoints in train mode only; dropout is silenced by hand."""
    silenced = []
    module.train(dropout or checkpointing)
    if checkpointing:
        module.model.activation_checkpointing_enable({"use_reentrant": False})
    if checkpointing and not dropout:
        for part in module.modules():
            names = (
                ["p"]
                if isinstance(part, torch.nn.Dropout)
                else [k for k in vars(part) if "dropout" in k]
            )
            silenced += [(part, k, v) for k in names if isinstance(v := getattr(part, k), float)]
    for part, k, _ in silenced:
        setattr(part, k, 0.0)
    yield
    for part, k, v in silenced:
        setattr(part, k, v)
    if checkpointing:
        module.model.activation_checkpointing_disable()
        module.model.disable_input_require_grads()


def _number(norm):
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def rate_at(step, steps):
    warm = max(1, round(WARM_UP * steps))
    return min(
        (step + 1) / warm,
        0.5 * (1 + math.cos(math.pi * max(step - warm, 0) / max(steps - warm, 1))),
    )


def store_trained(key, module, log, **info):
    """What training changed, and the log of a finished run, as one cache entry, with further `info`."""
    arrays = {name: tensor.cpu().numpy() for name, tensor in adapters.trained_state(module).items()}
    arrays |= {f"log.{c}": log[c].to_numpy(np.float64) for c in log}
    cache.store("policy", key, arrays, log=list(log), **info)


def load_trained(key, policy):
    """(policy with the stored weights, log, info) of a finished run, or None. `policy` gives everything else."""
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
