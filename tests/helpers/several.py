"""What one process and several must do alike: a program for `accelerate launch`, and a function for one process.

    accelerate launch --config_file notebooks/profiles/accelerate_fsdp.yaml --num_processes 2 tests/several.py FOLDER

Writes FOLDER/results.npz: the log and the weights of every run, with DDP and with FSDP, by process 0.
"""

import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers import tiny_models as toy
from safealign_utils import train
from safealign_utils.engine import distributed

SETTING = dict(beta=0.5, steps=5, batch_size=7, learning_rate=5e-3, seed=0)


@dataclasses.dataclass(frozen=True)
class ByRow:
    """A token lever that depends on the row's number in the table."""

    def __call__(self, logratio_w, logratio_l, mask_w, mask_l, rows):
        weight = torch.as_tensor(1.0 + rows).to(logratio_w)[:, None] / 8
        return weight * mask_w, weight * mask_l


def shifted_square(z, beta):
    return (z - 1 / beta).square()


def adapted():
    return train.align(
        toy.policy_of("qwen2").to("float64"), toy.made_tokens(), **SETTING, lora=2
    ).policy


CASES = {
    "plain": dict(),
    "three parts": dict(accumulate=3),
    "more parts than rows": dict(accumulate=9, batch_size=3),
    "one row": dict(batch_size=1),
    "link": dict(link=shifted_square),
    "lever": dict(token_lever=ByRow(), accumulate=2),
    "checkpointing": dict(checkpointing=True, accumulate=2),
    "adapter": dict(lora=2, accumulate=2),
    "adapter, checkpointing": dict(lora=2, checkpointing=True),
    "warm start": dict(lora=2, start=adapted, seed=1),
    "bfloat16": dict(lora=2, bf16=True),
}


def one(kind="qwen2", bf16=False, start=None, **changes):
    policy = toy.policy_of(kind)
    policy = dataclasses.replace(policy, bf16=True) if bf16 else policy.to("float64")
    return train.align(policy, toy.made_tokens(), **SETTING | changes, start=start and start())


def head():
    policy, ids = (
        toy.policy_of("llama"),
        torch.from_numpy(np.random.default_rng(0).integers(3, 40, (12, 5))),
    )

    def loss_of(module, rows):
        loss = (module(ids[rows]) - ids[rows, 0] / 20).square().sum()
        return loss, {"loss": loss.item()}

    def wrap(policy):
        policy.model.double()
        return toy.WithHead(policy).double()

    setting = train.Training(steps=6, batch_size=5, learning_rate=1e-2, seed=3)
    order = train.batch_order(12, 6, 5, 0)
    return train.run_training(policy, loss_of, order, setting, asked={}, name="head", wrap=wrap)


def fine_tuned():
    policy, tokens = (
        toy.policy_of("gpt2", resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0),
        toy.made_tokens(),
    )
    setting = dict(seed=0, steps=3, batch_size=7, learning_rate=1e-3)
    return train.fine_tune(
        policy.to("float64"), tokens.prompts, tokens.chosen, accumulate=2, **setting
    )


def interrupted(stop, **changes):
    """A run that is broken off in its 8th step on every process, its state written after the 5th; then what is resumed."""
    real, calls = train.log_ratios, []

    def watched(*args):
        calls.append(1)
        if stop and len(calls) == 8:
            raise toy.Stop
        return real(*args)

    train.log_ratios = watched
    try:
        run = one(steps=10, save_every=5, batch_size=4, **changes)
    except toy.Stop:
        run = None
    finally:
        train.log_ratios = real
    return run, len(calls)


def results():
    """{name: array} of every case; runs that were found in the cache are marked."""
    out = {}

    def note(name, run):
        out[f"{name}: log"] = run.log.to_numpy()
        out[f"{name}: weights"] = torch.cat(
            [p.detach().flatten().double() for p in run.module.parameters()]
        ).numpy()
        out[f"{name}: cached"] = np.array(distributed.gather(run.cached))

    for name, changes in CASES.items():
        note(name, one(**changes))
    note("head", head())
    note("fine-tuned", fine_tuned())
    note("again", one())
    interrupted(stop=True)
    run, calls = interrupted(stop=False)
    note("resumed", run)
    out["resumed: steps"] = np.array(distributed.gather(calls))
    interrupted(stop=True, seed=5, lora=2)  # left for another number of processes
    return out


def alone(number):
    """Process 1 has a cache of its own: who decides, and what is said where the folder is not shared."""
    root, out = os.environ["SAFEALIGN_CACHE"], {}
    elsewhere = lambda: os.environ.update(SAFEALIGN_CACHE=root + "-elsewhere" if number else root)
    hidden = lambda: os.environ.update(SAFEALIGN_CACHE=root if number else root + "-elsewhere")
    for name, place in (("not seen by 1", elsewhere), ("seen by 1 alone", hidden)):
        place()
        try:
            said = "cached" if one(bf16=True, lora=2).cached else "trained"
        except RuntimeError as error:
            said = str(error)
        out[name] = np.array(distributed.gather(said))
    os.environ["SAFEALIGN_CACHE"] = root
    return out


def sharded():
    """The same under FSDP. accelerate shards on GPUs only: here it is told that processors are, and goes over gloo."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import FSDPModule

    os.environ["SAFEALIGN_CACHE"] += "-fsdp"
    os.environ["ACCELERATE_USE_FSDP"], os.environ["ACCELERATE_TORCH_DEVICE"] = "true", "cpu"
    PartialState._prepare_backend = lambda self, *a, **k: ("gloo", DistributedType.MULTI_XPU)
    real, seen = train.log_ratios, []
    train.log_ratios = lambda module, *a: (
        seen.append(isinstance(module, FSDPModule)),
        real(module, *a),
    )[1]
    return {f"fsdp, {name}": value for name, value in results().items()} | {
        "fsdp": np.array(all(seen))
    }


if __name__ == "__main__":
    os.environ["ACCELERATE_USE_FSDP"] = (
        "false"  # first without, whatever the launcher's configuration says
    )
    found = results() | alone(distributed.rank())
    found["told"] = np.array(
        distributed.gather(
            distributed.agree_apart("does process 0 say so?", distributed.rank() == 0)
        )
    )
    found |= sharded()
    if distributed.rank() == 0:
        np.savez(Path(sys.argv[1]) / "results.npz", **found)
