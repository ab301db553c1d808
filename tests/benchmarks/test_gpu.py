"""The GPU benchmark: it runs, small, on a CPU; it times only what has equal losses; its FLOPs are those that are done."""

import importlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT
from torch.utils.flop_counter import FlopCounterMode

from safealign_utils.engine import fast_llama
from safealign_utils.logprobs import LogProbs

SCRIPT = ROOT / "tests/benchmarks/gpu.py"


@pytest.fixture(scope="module")
def gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tests/benchmarks")
        yield importlib.import_module("gpu")


@pytest.fixture(scope="module")
def steps(gpu):
    return gpu.gpu_steps


def test_all_of_it_runs_on_a_cpu(tmp_path):
    pytest.importorskip("trl")
    command = [sys.executable, SCRIPT, "--toy", "--write", tmp_path / "toy.csv"]
    done = subprocess.run(command, capture_output=True, text=True)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    text, table = (tmp_path / "toy.txt").read_text(), pd.read_csv(tmp_path / "toy.csv")
    head = [line.split(":")[0] for line in text.splitlines()[:5]]
    assert head == ["date", "hardware", "versions", "commit", "command"] and text in printed
    assert (table.device == "cpu").all() and (pd.to_numeric(table.seconds) > 0).all(), printed
    step, dog = table[table.what == "tiny"], table[table.what == "DOG-D, 64 wide"]
    assert len(step) == 8 and step.pairs_per_s.notna().all() and table.peak_percent.isna().all()
    for kit, trl in (("kit, float32", "TRL, float32"), ("kit, bf16", "TRL, bf16")):
        one, other = (step[step.variant == name].iloc[0] for name in (kit, trl))
        assert other.kit_is_faster == pytest.approx(other.seconds / one.seconds, rel=1e-2)
    assert dog.variant.str.split(",").str[0].tolist() == [
        "coordinates",
        "features",
        "greedy",
        "greedy",
    ]
    assert printed.count("losses of") == 8 and "not compared" not in printed
    assert sorted(f.name for f in tmp_path.iterdir()) == ["toy.csv", "toy.txt"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device to measure on")
def test_without_a_gpu_the_table_says_so(gpu, tmp_path, capsys):
    gpu.main(["--write", str(tmp_path / "gpu.csv")])
    printed = capsys.readouterr().out
    table = pd.read_csv(tmp_path / "gpu.csv")
    assert (table.seconds == "not measured").all() and len(table) == printed.count(
        "not measured"
    ) == 9
    assert (table.device == "no CUDA device").all() and (
        tmp_path / "gpu.txt"
    ).read_text() == printed
    assert table.pairs_per_s.isna().all() and table.peak_percent.isna().all()


@pytest.mark.parametrize("word", ["--toy", "--cpu"])
def test_a_toy_never_becomes_the_committed_table(gpu, word, capsys):
    with pytest.raises(SystemExit):
        gpu.main([word, "--write"])
    assert "the committed table is of a GPU" in capsys.readouterr().err


def test_what_has_other_losses_is_not_timed(steps, capsys):
    tokens = steps.random_tokens("tiny", 6, 5, 3)
    way = lambda block: ("float32", block, {}, "kit, float32")
    other = lambda *given, **options: (
        np.ones(1),
        steps.kit(*given, **options)[1] + np.array([0, 2e-4]),
    )
    steps.check_losses(
        "tiny", tokens, "cpu", {"kit, float32": way(steps.kit), "again": way(steps.kit)}
    )
    with pytest.raises(SystemExit, match="losses of other .* nothing was timed"):
        steps.check_losses(
            "tiny", tokens, "cpu", {"kit, float32": way(steps.kit), "other": way(other)}
        )
    at_the_reference = lambda reference, start, *given, **options: steps.kit(
        reference, reference, *given, **options
    )
    with pytest.raises(
        SystemExit, match="nothing was timed"
    ):  # there ln 2 is the loss of everything
        steps.check_losses("tiny", tokens, "cpu", {"kit, float32": way(at_the_reference)})
    assert capsys.readouterr().out.count("losses of") == 5


def test_what_fails_is_a_row_that_says_why(steps):
    def full(*given, **options):
        raise RuntimeError("out of memory:\n  on a small card")

    slow = lambda *given, **options: (np.array([3.0, 3.0, 9.0]), steps.kit(*given, **options)[1])
    ways = {
        "kit, float32": ("float32", steps.kit, {}, "kit, float32"),
        "full": ("float32", full, {}, "kit, float32"),
        "slow": ("float32", slow, {}, "kit, float32"),
    }
    kit, failed, slow = steps.in_turn("tiny", 6, 5, 3, device="cpu", rounds=2, steps=2, ways=ways)
    assert (
        failed[4:6] == ["full", "failed: RuntimeError: out of memory: on a small card"]
        and failed[6:] == [""] * 4
    )
    assert kit[7] == 1 and kit[6] == pytest.approx(3 / kit[5]) and slow[5] == 3
    assert slow[7] == pytest.approx(3 / kit[5], rel=0.5) and slow[7] > 10


@pytest.mark.parametrize("prompt, response", [(9, 4), (3, 8)])
def test_flops_are_those_that_a_step_does(steps, prompt, response, monkeypatch):
    """A network's own FLOPs; the fast forward of a CPU does less in the last layer."""
    monkeypatch.setattr(fast_llama, "fits", lambda *given: False)
    policy = steps.new_policy("tiny", "float32", "cpu")
    policy.model.set_attn_implementation("eager")
    c, tokens = steps.SHAPES["tiny"], steps.random_tokens("tiny", prompt, response, 2)
    batch = tokens.batch([0, 1], policy)
    together = torch.tensor(
        np.array([np.r_[x, y] for x, y in zip(tokens.prompts * 2, tokens.chosen + tokens.rejected)])
    )
    apart = policy.model.base_model
    head = policy.model.get_output_embeddings()
    work = {
        True: lambda: LogProbs(policy)(batch)[0].sum(),
        False: lambda: head(apart(together).last_hidden_state[:, prompt - 1 : -1]).sum(),
    }
    seen = {
        True: int(batch.mask.sum()),
        False: 2 * 2 * (prompt + response) * (prompt + response + 1) // 2,
    }
    for shared, forward in work.items():
        with FlopCounterMode(display=False) as counter:
            forward().backward()
        counts = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
        attention = 3 * c["num_hidden_layers"] * 4 * c["hidden_size"] * seen[shared]
        assert (
            2 * steps.flops("tiny", prompt, response, shared=shared)
            == counts["aten.mm"] + attention
        )


def test_grouped_keys_and_values_are_counted_once(steps):
    """Weights of the layers of Qwen2.5-0.5B: 357.9 M without its 136.1 M embeddings (its config, biases and norms left out)."""
    c = steps.SHAPES["Qwen2.5-0.5B"]
    long = [steps.flops("Qwen2.5-0.5B", n, 1, shared=True) for n in (1, 2, 3)]
    linear, attention = 6 * 357_826_560, 12 * c["num_hidden_layers"] * c["hidden_size"]
    assert (
        long[1] - long[0] == linear + 2 * attention and long[2] - long[1] == linear + 3 * attention
    )


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Tesla T4", None),
    ],
)
def test_the_peak_of_an_unknown_chip_is_not_made_up(steps, name, peak, monkeypatch):
    assert steps.peak_of(name) == peak
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
    share = steps.peak_share("tiny", 24, 24, 1000.0, shared=False)
    wanted = (
        "not stated" if peak is None else 1e5 * steps.flops("tiny", 24, 24, shared=False) / peak
    )
    assert share == wanted
