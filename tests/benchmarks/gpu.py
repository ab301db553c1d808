"""The kit on a GPU: a step of DPO against TRL's in the same run, and DOG from 4096-wide states.

Both sides take a step with the same random weights, pairs, optimiser and schedule. First the losses: away from the
reference, before and after one step, they must be equal. Then blocks of steps in turn; medians over rounds, ratios
within a round. bf16 computes in bfloat16 with weights in float32. Precomputed reference and no checkpointing unless
said. `peak %` is the share of the chip's dense bf16 peak: 6 FLOPs a weight and token, the head where a token is
predicted, attention where the mask is open; what is computed twice counts once. The kit computes a prompt once for
both responses, so at an equal share it is faster. DOG's peak of memory includes its data.

Run: python tests/benchmarks/gpu.py [--toy | --cpu] [--write [FILE]]

Measures on a CUDA device; without one it says "not measured". `--toy`: all of it on the CPU, small and short, to see
that it runs. `--cpu`: the steps of the tiny network, in CPU seconds of one thread.
"""

import argparse
import os
import sys
import tempfile
from datetime import date
from importlib import metadata
from pathlib import Path

import gpu_steps
import pandas as pd
import torch
from gpu_steps import clock
from selection import directions

from safealign_utils.methods import dog
from safealign_utils.study import records

RESULT = Path(__file__).parents[2] / "notebooks" / "tables" / "gpu.csv"
# (configuration, prompt tokens, response tokens, pairs a step)
CUDA = [
    ("Qwen2.5-0.5B", 128, 128, 16),
    ("Qwen2.5-0.5B", 512, 512, 8),
    ("Llama-3.2-3B", 128, 128, 8),
]
CUDA += [("Llama-3.2-3B", 512, 512, 2)]
COLUMNS = [
    "what",
    "prompt",
    "response",
    "pairs",
    "variant",
    "seconds",
    "pairs_per_s",
    "kit_is_faster",
    "peak_gb",
    "peak_percent",
    "device",
]


def dog_rows(n, width, k, device):
    """Rows of COLUMNS but for the device: DOG-D from directions that lie on it. `pairs` is N."""
    u, source = directions(n, width, device)
    eleven, rows, kept = dog.budget_size(0.11, n), [], {}

    def timed(what, work):
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        start = clock(device)
        kept[what] = work()
        seconds = clock(device) - start
        peak = torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else ""
        rows.append([f"DOG-D, {width} wide", "", "", n, what, seconds, "", "", peak, ""])
        return kept[what]

    dog.dog_d(u[:200, :32].contiguous(), source[:200], 20)  # loads what is loaded once
    where = timed("coordinates", lambda: dog.coordinates(u, source))
    F = timed("features", lambda: dog.features(where))
    timed(f"greedy, k = {k:,}", lambda: dog.greedy_log_det(F, k))
    timed(f"greedy, k = {eleven:,}", lambda: dog.greedy_log_det(F, eleven))
    return rows


def not_measured():
    rows = [
        [*c, v, "not measured", "", "", "", ""] for c in CUDA for v in ("kit, bf16", "TRL, bf16")
    ]
    return [
        *rows,
        ["DOG-D, 4096 wide", "", "", 200_000, "end to end", "not measured", "", "", "", ""],
    ]


def text_of(table, script="gpu.py", options=("--toy", "--cpu", "--write")):
    """What is needed to read the table, where and how it was made, and the table, a line a row."""
    text = lambda v: f"{v:.3g}" if isinstance(v, float) else str(v)
    gpu = (
        f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
        if torch.cuda.is_available()
        else "no CUDA device"
    )
    versions = ", ".join(
        f"{p} {_version(p)}" for p in ("torch", "transformers", "trl", "accelerate", "peft")
    )
    given = [word for word in sys.argv[1:] if word in options]
    how = " ".join([f"python tests/benchmarks/{script}", *given])
    lines = [
        f"date: {date.today()}",
        f"hardware: {gpu}; {records.processor()}",
        f"versions: {versions}",
    ]
    lines += [f"commit: {records.git_commit() or 'not stated'}", f"command: {how}", ""]
    lines.append(
        f"{'':<17}{'tokens':>9}{'pairs':>8}{'s':>13}{'pairs/s':>9}{'kit is':>8}{'GB':>7}{'peak %':>11}  variant, device"
    )
    for r in table.itertuples():
        size, faster = (
            f"{r.prompt}+{r.response}" if r.prompt else "",
            f"{r.kit_is_faster:.2f}x" if r.kit_is_faster else "",
        )
        numbers = f"{text(r.seconds):>13}{text(r.pairs_per_s):>9}{faster:>8}{text(r.peak_gb):>7}{text(r.peak_percent):>11}"
        lines.append(f"{r.what:<17}{size:>9}{r.pairs:>8}{numbers}  {r.variant}, {r.device}")
    return "\n".join(lines) + "\n"


def write(table, text, file):
    """Write the table as CSV, and beside it, as .txt, what is printed; each beside its place, then renamed."""
    rounded = table.map(lambda v: float(f"{v:.4g}") if isinstance(v, float) else v)
    for place, content in (
        (file, rounded.to_csv(index=False, lineterminator="\n")),
        (file.with_suffix(".txt"), text),
    ):
        beside = place.with_suffix(".partial")
        beside.write_text(content)
        beside.replace(place)


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def measured(toy, cpu):
    """Rows of the table, in a temporary cache, and the device."""
    device = "cpu" if toy or cpu else "cuda"
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= dict(SAFEALIGN_CACHE=folder, HF_DATASETS_CACHE=folder, TQDM_DISABLE="1")
        if toy:
            rows = gpu_steps.in_turn("tiny", 24, 24, 4, device=device, rounds=1, steps=2)
            return rows + dog_rows(1000, 64, 20, device), device
        if cpu:
            return gpu_steps.in_turn("tiny", 24, 24, 32, device=device, rounds=7, steps=10), device
        rows = dog_rows(200_000, 4096, 1000, device)
        for size in CUDA:
            rows += gpu_steps.in_turn(*size, device=device, rounds=3, steps=20)
        return rows, torch.cuda.get_device_name()


def main(words=None):
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--toy", action="store_true", help="everything, small, on the CPU")
    ask.add_argument("--cpu", action="store_true", help="the steps of the tiny network on the CPU")
    ask.add_argument(
        "--write",
        nargs="?",
        const=RESULT,
        type=Path,
        metavar="FILE",
        help=f"by default {RESULT.name}",
    )
    given = ask.parse_args(words)
    if given.write == RESULT and (given.toy or given.cpu):
        ask.error("--write: the committed table is of a GPU; name another file")
    if given.toy or given.cpu or torch.cuda.is_available():
        rows, device = measured(given.toy, given.cpu)
    else:
        rows, device = not_measured(), "no CUDA device"
    table = pd.DataFrame(rows, columns=COLUMNS[:-1]).fillna("").assign(device=device)
    text = text_of(table)
    print(text, end="")
    if given.write:
        write(table, text, given.write)


if __name__ == "__main__":
    main()
