"""The one training loop, on accelerate: supervised fine-tuning and preference optimisation.

Batches are rows of a permutation fixed by the seed; the state of a long run is kept on disk and resumed
exactly (weights, optimiser, schedule, random states, position); a finished run is stored by content, so
the same question is never trained twice. A loss that is not finite stops the run before the weights move.
"""

import contextlib
import logging
import math
import os
import shutil
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from tqdm import tqdm

from . import cache
from .logprobs import LogProbs, length_mask, log_ratios, pack, reference_logprobs
from .loss import check_levers, preference_loss
from .policy import Policy, seeded

logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)  # tied weights are saved once, by design
CODE = ("logprobs.py", "grammar.py", "double.py", "loss.py", "train.py")
CLIP = 1.0  # gradient norm
BETAS = (0.9, 0.98)  # of AdamW: the runs are shorter than the memory of the usual 0.999
WARM_UP = 0.1  # share of the steps


@dataclass(frozen=True)
class Trained:
    """A trained policy, its log (one row a step), whether it came from the cache, and the seconds it took then."""

    policy: Policy
    log: pd.DataFrame
    cached: bool
    seconds: float = 0.0


class NotFinite(RuntimeError):
    """The loss or its gradient is not finite; the last good state is on disk."""


def batch_order(n, steps, batch_size, seed):
    """Row numbers int [steps, B]: one permutation of the n rows after another."""
    g = np.random.Generator(np.random.PCG64([seed, 2**30]))
    size = min(batch_size, n)
    epochs = -(-steps * size // n)
    return np.concatenate([g.permutation(n) for _ in range(epochs)])[: steps * size].reshape(steps, size)


# ---------------------------------------------------------------- what is trained


def fine_tune(policy, prompts, responses, *, seed, steps, batch_size, learning_rate, use_cache=True, **loop):
    """Supervised fine-tuning: minimise the negative log-likelihood per response (nats, summed over its tokens).

    `prompts`, `responses`: lists of N int arrays, responses with their end-of-sequence token.
    """
    order = batch_order(len(prompts), steps, batch_size, seed)

    def loss_of(module, rows):
        batch = pack([prompts[i] for i in rows], [[responses[i] for i in rows]], pad_id=policy.pad_id)
        logp, _ = module(batch.to(policy.device))
        return -logp.sum(), {"loss": -logp.sum().item()}

    setting = {"seed": seed, "learning_rate": learning_rate, **loop}
    parts = (policy.hash, policy.readout, list(prompts), list(responses), order)
    key = cache.digest("sft", *parts, setting, _code()) if use_cache else None
    return _train(policy, loss_of, order, key=key, name="SFT", dropout=True, **setting)


def align(
    reference, tokens, *, beta, steps, batch_size, learning_rate, seed,
    start=None, leak_weight=0.0, token_lever=None, link=None, live_reference=False, use_cache=True, **loop,
):  # fmt: skip
    """Preference optimisation with the one loss; returns a `Trained`.

    `reference` is the frozen policy, `tokens` a `pairs.TokenPairs`, `start` where the policy begins
    (default: the reference). `leak_weight` times -mean over responses of sum_t log(mass that the grammar
    allows next) is added. `token_lever(logratio_w, logratio_l, mask_w, mask_l, rows)` returns token masks;
    it is a frozen dataclass, so that its repr names it in the cache. `link(z, beta)` replaces the logistic
    loss of the logit z [B] by another (BFPO, BSO); the cache knows it by its values. `live_reference` computes the
    reference anew in every batch instead of reading it from the cache on disk.

    Differs from the paper (arXiv 2305.18290, its authors' code): AdamW with cosine decay instead of RMSprop
    with warm-up; responses end in the tokenizer's own end-of-sequence token; the leak penalty is ours.
    """
    check_levers(tokens.p, tokens.margin, beta)
    if leak_weight and reference.grammar is None:
        raise ValueError(f"leak_weight={leak_weight}: only the world has a grammar; use 0 on real text")
    start = start or reference
    order = batch_order(len(tokens), steps, batch_size, seed)
    frozen = LogProbs(reference).eval() if live_reference else reference_logprobs(reference, tokens)

    def loss_of(module, rows):
        logratio_w, logratio_l, log_allowed = log_ratios(module, tokens, rows, start, frozen)
        kept = (None, None)
        if token_lever is not None:
            masks = [length_mask(n[rows]).to(logratio_w.device) for n in (tokens.lengths_w, tokens.lengths_l)]
            kept = token_lever(logratio_w.detach(), logratio_l.detach(), *masks, rows)
        p, margin = (torch.as_tensor(lever[rows]).to(logratio_w) for lever in (tokens.p, tokens.margin))
        out = preference_loss(logratio_w, logratio_l, beta=beta, p=p, margin=margin, tokens_w=kept[0], tokens_l=kept[1])
        if link is not None:
            out = replace(out, loss=link(out.z, beta))
        total, leak = out.loss.sum(), 0.0
        if leak_weight:
            penalty = -log_allowed.sum() / 2  # two responses a pair
            total, leak = total + leak_weight * penalty, penalty.item()
        correct = (out.h_w > out.h_l).double().sum().item()
        sums = {"loss": out.loss, "chosen": out.h_w, "rejected": out.h_l, "z": out.z}
        stats = {name: values.sum().item() for name, values in sums.items()}
        return total, stats | {"accuracy": correct, "leak_penalty": leak}

    setting = dict(beta=beta, seed=seed, learning_rate=learning_rate, leak_weight=leak_weight, **loop)
    policies = (reference.hash, reference.readout, start.hash, start.readout)
    levers = (tokens.hash, tokens.p, tokens.margin, repr(token_lever))
    probe = link(torch.linspace(-30, 30, 121, dtype=torch.float64), beta).tolist() if link else None  # what it computes
    parts = (*policies, *levers, order, live_reference, probe)
    key = cache.digest("align", *parts, setting, _code()) if use_cache else None
    return _train(start, loss_of, order, key=key, name="DPO", learning_rate=learning_rate, seed=seed, **loop)


def _code():
    return [cache.code_hash(*CODE), cache.library_versions()]


# ---------------------------------------------------------------- the loop


class _Progress:
    """Position and log of a run, in the form that accelerate saves."""

    def __init__(self):
        self.step, self.rows = 0, []

    def state_dict(self):
        return {"step": self.step, "rows": self.rows}

    def load_state_dict(self, state):
        self.step, self.rows = state["step"], list(state["rows"])


def _train(policy, loss_of, order, *, key, name, learning_rate, seed, dropout=False, accumulate=1, save_every=0):
    """Run the batches `order` [steps, B] with AdamW, linear warm-up and cosine decay to 0.

    `dropout` leaves the network's own dropout on; preference training has it off, or it would not start at
    the reference. `loss_of(module, rows)` returns the loss summed over rows and sums of what is logged. A
    batch is worked off in `accumulate` parts. The state is kept every `save_every` steps, 0: every 30 s.
    """
    if key and (found := load_trained(key, policy)):
        trained, log, info = found
        return Trained(trained, log, True, info["seconds"])
    trained, start = policy.copy(), time.perf_counter()
    steps, size = order.shape
    AcceleratorState._reset_state(reset_partial_state=True), GradientState._reset_state()
    accelerator = Accelerator(cpu=policy.device.type == "cpu", mixed_precision="bf16" if policy.bf16 else "no")
    optimizer = torch.optim.AdamW(
        trained.model.parameters(), lr=learning_rate, betas=BETAS, weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: _rate(s, steps))
    module = accelerator.prepare_model(LogProbs(trained).train(dropout))
    optimizer = accelerator.prepare_optimizer(optimizer)
    progress = _Progress()
    accelerator.register_for_checkpointing(schedule, progress)
    place = cache.root() / "partial" / key if key else None
    with seeded(seed):
        if place and (found := sorted(place.glob("state-????????"))):
            try:
                accelerator.load_state(str(found[-1]))
            except (OSError, RuntimeError, EOFError):  # damaged, or taken away by a process with the same task
                shutil.rmtree(found[-1], ignore_errors=True)
                again = dict(key=key, name=name, learning_rate=learning_rate, seed=seed, dropout=dropout)
                return _train(policy, loss_of, order, **again, accumulate=accumulate, save_every=save_every)
        saved = time.monotonic()
        bar = tqdm(total=steps, initial=progress.step, desc=name, disable=not sys.stderr.isatty(), leave=False)
        for step in range(progress.step, steps):
            rows = order[step][accelerator.process_index :: accelerator.num_processes]
            total = {}
            for part in np.array_split(rows, min(accumulate, len(rows))):
                loss, stats = loss_of(module, part)
                accelerator.backward(loss * accelerator.num_processes / size)
                total = {k: total.get(k, 0.0) + v for k, v in stats.items()}
            norm = float(accelerator.clip_grad_norm_(trained.model.parameters(), CLIP))
            if not (math.isfinite(total["loss"]) and math.isfinite(norm)):
                optimizer.zero_grad()
                kept = _keep(accelerator, place, progress) if place else "nowhere, as the run has no cache"
                raise NotFinite(
                    f"{name}: loss {total['loss'] / len(rows)}, gradient norm {norm} at step {step + 1} of {steps}, "
                    f"batch rows {rows.tolist()}; the last good state is kept in {kept}; try a lower learning_rate"
                )
            optimizer.step(), schedule.step(), optimizer.zero_grad()
            progress.step = step + 1
            progress.rows.append({"step": step + 1, **{k: v / len(rows) for k, v in total.items()}, "grad_norm": norm})
            bar.update()
            due = progress.step % save_every == 0 if save_every else time.monotonic() - saved > 30
            if place and due and progress.step < steps:
                _keep(accelerator, place, progress)
                saved = time.monotonic()
        bar.close()
    trained.model.eval()
    log = pd.DataFrame(progress.rows).astype({"step": float})
    seconds = time.perf_counter() - start
    if key and accelerator.is_main_process:
        store_trained(key, trained.model, log, seconds=seconds)
        shutil.rmtree(place, ignore_errors=True)
    return Trained(trained, log, False, seconds)


def _rate(step, steps):
    warm = max(1, round(WARM_UP * steps))
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * max(step - warm, 0) / max(steps - warm, 1))))


def _keep(accelerator, place, progress):
    """Write the state beside its place, rename it, drop older ones. Another process may do the same."""
    place.mkdir(parents=True, exist_ok=True)
    mine = os.getpid() if accelerator.num_processes == 1 else "all"
    final, beside = place / f"state-{progress.step:08d}", place / f"{mine}.partial"
    if not final.exists():
        shutil.rmtree(beside, ignore_errors=True)
        accelerator.save_state(str(beside))
        if accelerator.is_main_process:
            with contextlib.suppress(OSError):  # the other one was first, with the same state
                beside.rename(final)
    for old in place.glob("state-????????"):
        if old.name < final.name:
            shutil.rmtree(old, ignore_errors=True)
    return final


def store_trained(key, model, log, **info):
    """Weights (each tied tensor once) and log of a finished run, as one cache entry, with further `info`."""
    seen, arrays = set(), {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            arrays[name] = tensor.cpu().numpy()
    arrays |= {f"log.{c}": log[c].to_numpy(np.float64) for c in log}
    cache.store("policy", key, arrays, log=list(log), **info)


def load_trained(key, policy):
    """(policy with the stored weights, log, info) of a finished run, or None. `policy` gives everything else."""
    stored = cache.load("policy", key)
    if stored is None:
        return None
    arrays, info = stored
    log = pd.DataFrame({c: arrays.pop(f"log.{c}") for c in info["log"]})
    trained = policy.copy()
    trained.model.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()}, strict=False)
    return trained, log, info
