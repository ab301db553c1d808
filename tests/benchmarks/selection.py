"""Time and memory of selection against N: greedy log-det, DOG-D end to end, and at the smallest N the controls.

Float32 directions of unit norm in four data sets, one thread, a fresh process each: CPU seconds, and the peak of
memory above the data. On a CUDA device also DOG-D from 4096-wide directions, and log-det over them, held against
the bandwidth of a copy. Bars: 0.3 s at N 10,000; 20 s and 200 MB at N 200,000.

`--parts`: what two-stage greedy over parts of the pool loses of the value of one greedy, against random picks. The
parts are dealt at random, or filled data set by data set.

Run: python tests/benchmarks/pair_controls.py [--parts] [--toy] [--csv FILE]
"""

import itertools
import multiprocessing
import os
import resource
import sys
import tempfile
import time

import numpy as np
import pandas as pd
import torch

from safealign_utils.methods import dog, dog_partitioned, pair_controls

WIDTH, SIZES = 128, ((10_000, 500), (50_000, 1000), (200_000, 1000))
CUDA = dict(n=200_000, width=4096, k=1000)
TOY, TOY_CUDA = ((200, 20), (400, 40)), dict(n=400, width=64, k=20)
METHODS = {
    "greedy log det": lambda u, source, k: dog.greedy_log_det(u, k),
    "DOG-D, end to end": lambda u, source, k: dog.dog_d(u, source, k),
    "DOG, end to end": lambda u, source, k: dog.dog(u, source, k),
}
CONTROLS = {
    "facility location": lambda u, source, k: pair_controls.facility_location(u, k),
    "k-means": lambda u, source, k: pair_controls.k_means(u, k, seed=0),
    "k-centre": lambda u, source, k: pair_controls.k_centre(u, k),
}


def directions(n, width, device="cpu"):
    """Unit rows [n, width] and the names of their data sets."""
    u = torch.randn(n, width, generator=torch.Generator(device).manual_seed(0), device=device)
    return u.div_(u.norm(dim=1, keepdim=True)), np.array(list("abcd"))[np.arange(n) % 4]


def on_cpu(name, n, k):
    """CPU seconds and MB above the data of one method; to be called in a process of its own."""
    work = (METHODS | CONTROLS)[name]
    work(*directions(50, WIDTH), 5)  # loads what is loaded once
    u, source = directions(n, WIDTH)
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before, start = peak(), time.process_time()
    work(u, source, k)
    return time.process_time() - start, peak() - before


def on_cuda(work):
    """Seconds and MB above the data of work() on the device; the second of two runs."""
    for _ in range(2):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return seconds, (torch.cuda.max_memory_allocated() - before) / 2**20


def cuda(n, width, k):
    """Rows (method, device, N, width, k, seconds, MB above the data) measured on the device."""
    u, source = directions(n, width, "cuda")
    eleven, rows = dog.budget_size(0.11, n), []
    for name, method in METHODS.items():
        if name != "greedy log det":
            seconds, memory = on_cuda(lambda method=method: method(u, source, eleven))
            rows.append((name, "cuda", n, width, eleven, seconds, memory))
    seconds, memory = on_cuda(lambda: dog.greedy_log_det(u, k))
    copy, _ = on_cuda(u.clone)
    share = (u.nbytes * k / seconds) / (2 * u.nbytes / copy)
    name = f"greedy log det, {share:.0%} of the bandwidth of a copy ({2 * u.nbytes / copy / 1e9:.0f} GB/s)"
    return [*rows, (name, "cuda", n, width, k, seconds, memory)]


# ---------------------------------------------------------------- parts


def world_directions(n):
    """(u, source) of n pairs of the world's pool of re-worded pairs, width 64."""
    from safealign_utils import pairs
    from safealign_utils.references import reference_policy
    from safealign_utils.world import redundant
    from safealign_utils.world.world import World

    os.environ["SAFEALIGN_CACHE"] = tempfile.mkdtemp()
    world = World()
    policy, table = reference_policy(world, seed=0)[0], pairs.label(redundant.world_pool(world, n))
    return dog.directions(policy, pairs.tokenize(table, policy)), table.source.to_numpy()


def clusters(n, width=256):
    """(u, source) of n pairs: each near one of 40 centres, three quarters near 24 shared ones, sizes as 1 / rank."""
    g = np.random.Generator(np.random.PCG64(0))
    rank = lambda size: g.choice(size, n, p=(w := 1 / np.arange(1, size + 1)) / w.sum())
    block, own = np.arange(n) % 4, g.random(n) < 0.25
    centre = np.where(own, 24 + 4 * block + rank(4), rank(24))
    u = g.normal(size=(40, width))[centre] + 0.5 * g.normal(size=(n, width))
    return torch.nn.functional.normalize(torch.from_numpy(u).float(), dim=1), np.array(
        list("abcd")
    )[block]


def lost(pool, u, source, budgets=(0.01, 0.11), counts=(2, 8, 32)):
    """Rows (pool, N, width, k, how dealt, parts, offered by each, % of the value lost, % lost by random)."""
    n, F, table = len(u), dog.features(dog.coordinates(u, source)), []
    orders = {
        "random": pair_controls.random_pairs(n, n, seed=1),
        "by data set": np.argsort(source, kind="stable"),
    }
    for k in (dog.budget_size(b, n) for b in budgets):
        one = dog.greedy_log_det(F, k).gains.sum()
        chance = np.mean(
            [dog.log_det(F, pair_controls.random_pairs(n, k, seed=s)) for s in range(5)]
        )
        for (how, order), count in itertools.product(orders.items(), counts):
            dealt = [
                lambda r=r: (u[torch.from_numpy(r)], source[r], r)
                for r in np.array_split(order, count)
            ]
            for offered in sorted({min(k, -(-2 * k // count)), k}):
                value = dog_partitioned.partitioned_dog_d(dealt, k, per_part=offered).value
                row = (
                    pool,
                    n,
                    u.shape[1],
                    k,
                    how,
                    count,
                    offered,
                    100 * (1 - value / one),
                    100 * (1 - chance / one),
                )
                table.append(row)
                print(
                    "{:<10}{:>7}{:>6}{:>6}  {:<12}{:>5}{:>8}{:>10.3f}{:>10.2f}".format(*row),
                    flush=True,
                )
    return table


def parts(toy, csv=None):
    n = 400 if toy else 8000
    print(
        f"{'pool':<10}{'N':>7}{'width':>6}{'k':>6}  {'dealt':<12}{'parts':>5}{'offered':>8}{'% lost':>10}{'random':>10}"
    )
    counts = (2, 4) if toy else (2, 8, 32)
    rows = lost("world", *world_directions(n), counts=counts) + lost(
        "clusters", *clusters(2 * n), counts=counts
    )
    names = [
        "pool",
        "N",
        "width",
        "k",
        "dealt",
        "parts",
        "offered by each",
        "% of the value lost",
        "% lost by random",
    ]
    if csv:
        pd.DataFrame(rows, columns=names).round(4).to_csv(csv, index=False)


def main(toy, csv=None):
    sizes, rows = TOY if toy else SIZES, []
    print("time and memory of selection against N")
    print(
        f"{'method':<20}{'device':<8}{'N':>9}{'width':>7}{'k':>7}{'seconds':>10}{'MB above data':>15}"
    )
    for name in METHODS | CONTROLS:
        for n, k in sizes if name in METHODS else sizes[:1]:
            with multiprocessing.get_context("fork").Pool(1) as alone:
                seconds, memory = alone.apply(on_cpu, (name, n, k))
            rows.append((name, "cpu", n, WIDTH, k, seconds, memory))
            print("{:<20}{:<8}{:>9}{:>7}{:>7}{:>10.2f}{:>15.0f}".format(*rows[-1]), flush=True)
    if torch.cuda.is_available():
        for row in cuda(**(TOY_CUDA if toy else CUDA)):
            rows.append(row)
            print("{:<20}{:<8}{:>9}{:>7}{:>7}{:>10.2f}{:>15.0f}".format(*row))
    else:
        n, width, k = CUDA["n"], CUDA["width"], CUDA["k"]
        rows += [
            (name, "cuda", n, width, kk, "not measured", "no CUDA device")
            for name, kk in (("DOG-D, end to end", 22_000), ("greedy log det", k))
        ]
        print("cuda: not measured (no CUDA device)")
    if csv:
        table = pd.DataFrame(
            rows, columns=["method", "device", "N", "width", "k", "seconds", "MB above the data"]
        )
        table.map(lambda v: round(v, 2) if isinstance(v, float) else v).to_csv(csv, index=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    work = parts if "--parts" in sys.argv else main
    work(
        "--toy" in sys.argv, sys.argv[sys.argv.index("--csv") + 1] if "--csv" in sys.argv else None
    )
