"""Time and memory of selection against N: greedy log-det, DOG-D end to end, and at the smallest N the controls.

Float32 directions of unit norm in four data sets, one thread, a fresh process each: CPU seconds, and the peak of
memory above the data. On a CUDA device also DOG-D from 4096-wide directions, and log-det over them, held against
the bandwidth of a copy. Bars: 0.3 s at N 10,000; 20 s and 200 MB at N 200,000.

Run: python tests/benchmarks/selection.py [--toy] [--csv FILE]
"""

import multiprocessing
import resource
import sys
import time

import numpy as np
import pandas as pd
import torch

from safealign_utils.methods import dog, pair_controls

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

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

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
    file = sys.argv[sys.argv.index("--csv") + 1] if "--csv" in sys.argv else None
    main("--toy" in sys.argv, file)
