"""One step of DPO, the kit's own `train.align` and TRL's own `DPOTrainer`, timed from batch to batch; see gpu.py."""

import copy
import gc
import importlib.util
import re
import statistics
import tempfile
import time
import warnings

import numpy as np
import torch
import transformers

from safealign_utils import train
from safealign_utils.policy import Policy, seeded
from safealign_utils.references import word_tokenizer
from safealign_utils.tokens import TokenPairs

# Dense bf16 FLOP/s, by words in the device's name: NVIDIA's product pages, without sparsity. None: not stated there.
PEAKS = {
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200 NVL": None,
    "H200": 989e12,
    "A100": 312e12,
}
SHAPES = {  # the published configurations, in what decides speed
    "Qwen2.5-0.5B": dict(
        model_type="qwen2",
        hidden_size=896,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
        vocab_size=151936,
    ),
    "Llama-3.2-3B": dict(
        model_type="llama",
        hidden_size=3072,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        intermediate_size=8192,
        vocab_size=128256,
    ),
    "tiny": dict(
        model_type="llama",
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=352,
        vocab_size=512,
    ),
    "small": dict(
        model_type="llama",
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        intermediate_size=1376,
        vocab_size=8192,
    ),
    "SmolLM2-135M": dict(  # its weights are read: see cpu.py
        model_type="llama",
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
    ),
}
READ = {}  # {name: network} of those that are read
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of the loss, in nats
SETTING = dict(beta=0.1, learning_rate=1e-5, seed=0)
LAST = "TRL, bf16, Liger"  # patches transformers for the rest of the process


def new_policy(name, dtype, device, seed=0, init_std=0.02):
    """A policy with random weights of a configuration; one that is read, with noise where `seed`
    asks for another."""
    if name in READ:
        model = copy.deepcopy(READ[name])
        with torch.no_grad(), seeded(seed):
            for weight in model.parameters() if seed else ():
                weight.add_(torch.randn_like(weight), alpha=0.2 * float(weight.std()))
        return Policy(model.eval(), word_tokenizer(["word"]), bf16=dtype == "bfloat16")
    config = transformers.AutoConfig.for_model(
        **SHAPES[name], tie_word_embeddings=True, initializer_range=init_std
    )
    with seeded(seed), torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa", dtype=torch.float32
        )
    return Policy(model.eval(), word_tokenizer(["word"]), bf16=dtype == "bfloat16")


def random_tokens(name, prompt, response, n):
    """n pairs of random tokens, all of the same length."""
    g = np.random.Generator(np.random.PCG64(0))
    draw = lambda length: [g.integers(3, SHAPES[name]["vocab_size"], length) for _ in range(n)]
    return TokenPairs(draw(prompt), draw(response), draw(response), np.ones(n), np.zeros(n))


def clock(device):
    """Seconds: of the wall once the GPU has done its work, of this process on a CPU."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


# ---------------------------------------------------------------- one block of steps


def kit(reference, start, tokens, steps, **options):
    """(seconds of each step but the last, losses) of `train.align`."""
    starts, real = [], train.log_ratios
    train.log_ratios = lambda *given: (starts.append(clock(reference.device.type)), real(*given))[1]
    try:
        setting = SETTING | dict(steps=steps, batch_size=len(tokens), use_cache=False)
        log = train.align(reference, tokens, start=start, **setting, **options).log
    finally:
        train.log_ratios = real
    return np.diff(starts), log.loss.to_numpy()


def trl(
    reference,
    start,
    tokens,
    steps,
    *,
    attention="sdpa",
    precompute=True,
    plain_bf16=False,
    **options,
):
    """The same of TRL's DPOTrainer, with the kit's optimiser and schedule. It trains the policy that it is given."""
    import datasets
    from transformers.trainer_callback import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    device, starts, losses = reference.device.type, [], []

    class Timed(DPOTrainer):
        def _prepare_dataset(self, dataset, *_):
            return dataset  # it holds token ids already

        def training_step(self, *given, **named):
            starts.append(clock(device))
            losses.append(super().training_step(*given, **named))
            return losses[-1]

    frozen = None if precompute else copy.deepcopy(reference.model)
    frozen, model = (reference.model, start.model) if start else (frozen, reference.model)
    model = model.to(torch.bfloat16 if plain_bf16 else torch.float32)
    model.set_attn_implementation(attention)
    rate = dict(lr=SETTING["learning_rate"], betas=train.BETAS, weight_decay=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), **rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: train.rate_at(s, steps))
    columns = {
        "prompt_ids": tokens.prompts,
        "chosen_ids": tokens.chosen,
        "rejected_ids": tokens.rejected,
    }
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = dict(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=len(tokens),
            beta=SETTING["beta"],
            max_length=None,
            max_grad_norm=train.CLIP,
            bf16=reference.bf16,
            gradient_checkpointing=False,
            seed=0,
            precompute_ref_log_probs=precompute,
            train_sampling_strategy="sequential",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=device == "cpu",
        )
        trainer = Timed(
            model,
            frozen,
            DPOConfig(**settings | options),
            processing_class=reference.tokenizer,
            train_dataset=datasets.Dataset.from_dict(
                {k: [x.tolist() for x in v] * steps for k, v in columns.items()}
            ),
            optimizers=(optimizer, schedule),
        )
        trainer.remove_callback(PrinterCallback)
        torch.use_deterministic_algorithms(False)  # the kit asks for them; TRL is not made to pay
        try:
            trainer.train()
        finally:
            torch.use_deterministic_algorithms(True, warn_only=True)
    return np.diff(starts), np.array([float(x) for x in losses])


def variants(device):
    """{name: (dtype, block of steps, its options, the row of the kit that it is held against)}."""
    default = dict(gradient_checkpointing=True, precompute=False)
    half = {
        "kit, bf16": (kit, {}),
        "TRL default (bf16, checkpointing, live reference)": (trl, default),
        "TRL, bf16": (trl, {}),
        "TRL, bf16, eager attention": (trl, dict(attention="eager")),
    }
    twice = {"kit, {}, checkpointing": (kit, dict(checkpointing=True))}
    twice |= {"TRL, {}, checkpointing": (trl, dict(gradient_checkpointing=True))}
    if device == "cpu":
        full = {"kit, float32": (kit, {}), "TRL, float32": (trl, {})}
        full |= {name.format("float32"): way for name, way in twice.items()}
    else:
        full = {}
        half |= {"TRL, bf16, compiled": (trl, dict(torch_compile=True))}
        half |= {
            "TRL, weights in bf16": (trl, dict(plain_bf16=True)),
            "kit, bf16, LoRA": (kit, dict(lora=16)),
        }
        half |= {name.format("bf16"): way for name, way in twice.items()}
        if transformers.utils.is_flash_attn_2_available():
            half["TRL, bf16, flash attention 2"] = (trl, dict(attention="flash_attention_2"))
        if importlib.util.find_spec("liger_kernel"):
            half[LAST] = (trl, dict(use_liger_kernel=True))
    against = lambda name, plain: (
        f"{plain}, checkpointing" if name.endswith(", checkpointing") else plain
    )
    return {
        name: ("float32", *way, against(name, "kit, float32")) for name, way in full.items()
    } | {name: ("bfloat16", *way, against(name, "kit, bf16")) for name, way in half.items()}


# ---------------------------------------------------------------- all of them, in turn


def check_losses(name, tokens, device, ways):
    """Refuse to time what is not the same: the losses before and after one step, away from the reference."""
    wanted = {}
    for variant, (dtype, block, options, _) in ways.items():
        if variant == LAST or "LoRA" in variant or "weights in" in variant:
            continue  # other arithmetic
        tolerance = TOLERANCE[dtype]
        try:
            both = (
                new_policy(name, dtype, device),
                new_policy(name, dtype, device, seed=1, init_std=0.05),
            )
            losses = block(*both, tokens, 2, **options)[1]
        except Exception as error:
            print(f"  losses of {variant}: not compared ({reason(error)})")
            continue
        print(f"  losses of {variant}: {losses[0]:.4f}, after a step {losses[1]:.4f}", flush=True)
        gap = np.abs(losses - wanted.setdefault(dtype, losses)).max()
        if not gap <= tolerance * max(1.0, *losses) or abs(losses[0] - np.log(2)) < tolerance:
            raise SystemExit(
                f"{name}: losses of {variant} {losses} are not {wanted[dtype]}; nothing was timed"
            )


def in_turn(name, prompt, response, n, *, device, rounds, steps, ways=None, tokens=None):
    """One row of `gpu.COLUMNS` for every variant, but for the device: medians over rounds, ratios within a round."""
    tokens = tokens or random_tokens(name, prompt, response, n)
    ways = ways or variants(device)
    print(
        f"{name}, {prompt} + {response} tokens, {n} pairs a step, {rounds} rounds of {steps} steps",
        flush=True,
    )
    check_losses(name, tokens, device, ways)
    seconds, memory, failed = {variant: [] for variant in ways}, {}, {}
    for names in ([v for v in ways if v != LAST], [v for v in ways if v == LAST]):
        for turn in range(rounds + 1):  # the first warms up
            for variant in names[:: 1 if turn % 2 else -1]:
                if variant not in failed:
                    try:
                        spent, memory[variant] = _block(name, device, ways[variant], tokens, steps)
                        seconds[variant] += [statistics.median(spent)] * (turn > 0)
                    except Exception as error:
                        failed[variant] = f"failed: {reason(error)}"
    rows = []
    for variant, (_, block, _, against) in ways.items():
        row = [name, prompt, response, n, variant]
        if variant in failed:
            rows.append([*row, failed[variant], "", "", "", ""])
            continue
        middle = statistics.median(seconds[variant])
        ratios = [a / b for a, b in zip(seconds[variant], seconds[against])]
        unknown = device == "cpu" or "LoRA" in variant  # an adapter's step has other FLOPs
        share = (
            "" if unknown else peak_share(name, prompt, response, n / middle, shared=block is kit)
        )
        rows.append(
            [
                *row,
                middle,
                n / middle,
                statistics.median(ratios) if ratios else "",
                memory[variant],
                share,
            ]
        )
    return rows


def _block(name, device, way, tokens, steps):
    """(seconds of each step, peak GB) of one block, from fresh weights."""
    dtype, block, options, _ = way
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    spent, _ = block(new_policy(name, dtype, device), None, tokens, steps + 1, **options)
    return spent, torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else ""


def reason(error):
    return re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:80]


# ---------------------------------------------------------------- share of the peak


def flops(name, prompt, response, *, shared, other=None):
    """Model FLOPs of forward and backward of one pair; `shared`: the prompt once for both responses.

    `other` is the length of the second response, where it is another than that of the first.
    """
    c, both = SHAPES[name], (response, other or response)
    D, L = c["hidden_size"], c["num_hidden_layers"]
    kv = D // c["num_attention_heads"] * c["num_key_value_heads"]
    seen = lambda first, last: (
        (last * (last + 1) - first * (first + 1)) // 2
    )  # keys of the queries first + 1 to last
    if shared:
        tokens = prompt + sum(both) - 2
        keys = seen(0, prompt) + sum(seen(prompt, prompt + own - 1) for own in both)
    else:
        tokens, keys = 2 * prompt + sum(both), sum(seen(0, prompt + own) for own in both)
    layer = 2 * (2 * D * D + 2 * D * kv + 3 * D * c["intermediate_size"]) * tokens + 4 * D * keys
    return 3 * (L * layer + 2 * D * c["vocab_size"] * sum(both))


def peak_share(name, prompt, response, pairs_per_second, *, shared):
    """% of the chip's dense bf16 peak, or "not stated" for a chip whose peak is not known here."""
    peak = peak_of(torch.cuda.get_device_name())
    return (
        100 * pairs_per_second * flops(name, prompt, response, shared=shared) / peak
        if peak
        else "not stated"
    )


def peak_of(device):
    """Dense bf16 FLOP/s of a device's name, or None."""
    return next((peak for words, peak in PEAKS.items() if re.search(rf"\b{words}\b", device)), None)
