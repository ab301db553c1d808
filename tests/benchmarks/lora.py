"""LoRA against all weights at equal CPU seconds, on notebook 07's setting: SmolLM2, soft labels, bfloat16.

    OMP_NUM_THREADS=1 python tests/benchmarks/lora.py [--steps 24] [--seeds 1] [--eval 18]

Seconds a step come first (training step and optimiser, one thread, alternated); then all weights get `steps` steps and
every adapter as many as fit into the same seconds, at three rates. KL is that of the policy to pi*_S, the exact optimum
of soft labels on the answer sets, in nats; `kl_ref` to the reference.
"""

import argparse
import os
import statistics
import tempfile
import time

import torch

from safealign_utils import train
from safealign_utils.study import real_model
from safealign_utils.world import optimum

ALL = (0, 2e-5)  # rank 0: all weights, at the profile's rate
ADAPTERS = [(rank, rate) for rate in (1e-3, 3e-4, 1e-4) for rank in (16, 8)]
SETTING = dict(
    profile="full", seed=0, beta=0.0, pairs=0, batch_size=0, dtype="", model="smollm2", device="cpu", accumulate=1, lora=0,
    out_dir="", cost_limit=-0.8, rounds=0, round_steps=0, dual_lr=2.0, keep=0.4, budget=0.11, learning_rate=0.0,
)  # fmt: skip


def timed(study, setup, table, rank, rate, **changes):
    """(`Trained`, CPU seconds of every step) of a training."""
    starts, real = [], train.one_batch
    train.one_batch = lambda *given: (starts.append(time.process_time()), real(*given))[1]
    try:
        asked = dict(lora=rank, learning_rate=rate, use_cache=False) | changes
        run = study.train(setup, table, **asked)
        starts.append(time.process_time())
    finally:
        train.one_batch = real
    return run, [b - a for a, b in zip(starts, starts[1:])]


def seconds_a_step(study, setup, table):
    """{rank: median CPU seconds of a step}, ranks in turn, the same prompts for all."""
    spent = {rank: [] for rank in (0, 8, 16)}
    for _ in range(2):
        for rank, found in spent.items():
            found += timed(study, setup, table, rank, 1e-5, steps=3)[1]
    return {rank: statistics.median(found) for rank, found in spent.items()}


def row(study, setup, name, steps, seconds):
    """Print what a policy is on both splits, against the optimum of soft labels on the same split."""
    values = []
    for split in real_model.SPLITS:
        read, ref = study.reads[name, setup.seed, split], study.reads["ref", setup.seed, split]
        values += [optimum.kl(read.logp, study.optima(split)["dpo"])]
        values += [optimum.kl(read.logp, ref.logp)]
        values += [float((read.log_mass - ref.log_mass).mean())]
    numbers = "".join(f"{value:9.3f}" for value in values)
    print(f"{name:<18}{setup.seed:>4}{steps:>6}{seconds:>9.0f}{numbers}", flush=True)


def main(steps, seeds, eval_size):
    study = real_model.RealModel(
        "07_a_real_model", SETTING | dict(beta=0.1, seeds=seeds, steps=steps, eval_size=eval_size)
    )
    os.environ["SAFEALIGN_CACHE"] = tempfile.mkdtemp()  # the model lies in the usual one
    table, first = study.every_pair(), study.setups[0]
    each = seconds_a_step(study, first, table)
    print(
        "CPU seconds a step: "
        + ", ".join(f"rank {r} {s:.2f}" if r else f"all weights {s:.2f}" for r, s in each.items())
    )
    names = [f"{split}.{q}" for split in ("train", "held") for q in ("kl", "ref", "mass")]
    print(
        f"{'trained':<18}{'seed':>4}{'steps':>6}{'seconds':>9}"
        + "".join(f"{n:>9}"[-9:] for n in names)
    )
    for setup in study.setups:
        row(study, setup, "ref", 0, 0)
        for rank, rate in (ALL, *ADAPTERS):
            name = f"rank {rank}, {rate:g}" if rank else f"all, {rate:g}"
            n = round(steps * each[0] / each[rank])
            run, spent = timed(study, setup, table, rank, rate, steps=n)
            study.add(name, setup.seed, run.policy)
            row(study, setup, name, n, sum(spent))


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--steps", type=int, default=24, help="steps of all weights, two prompts each")
    ask.add_argument("--seeds", type=int, default=1)
    ask.add_argument("--eval", type=int, default=18, help="prompts of each split that are read")
    given = ask.parse_args()
    torch.set_num_threads(1)
    main(given.steps, given.seeds, given.eval)
