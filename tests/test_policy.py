"""Real architectures at toy size: log-probs as transformers computes them, adapters, checkpointing, other heads."""

import copy
import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from helpers.tiny_models import Stop, WithHead, made_tokens, policy_of
from safetensors.torch import load_file

from safealign_utils import train
from safealign_utils.engine import cache
from safealign_utils.engine import lora as adapters
from safealign_utils.logprobs import LogProbs, reference_logprobs
from safealign_utils.packing import pack

KINDS = ("llama", "qwen2", "mistral", "gpt2")
WINDOWS = {
    "mistral": dict(sliding_window=7),
    "qwen2": dict(use_sliding_window=True, sliding_window=7, max_window_layers=1),
}
SETTING = dict(beta=0.5, steps=6, batch_size=6, learning_rate=5e-3, seed=0)


def plain_logprobs(model, prompt, response):
    """What transformers' own forward says, one row at a time."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1)[range(len(response)), response]


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# ---------------------------------------------------------------- log-probs


@pytest.mark.parametrize(
    "kind, window", [*((kind, False) for kind in KINDS), *((kind, True) for kind in WINDOWS)]
)
def test_logprobs_are_those_of_transformers(kind, window):
    """Also where layers see only a few tokens back (Mistral), or some of the layers do (Qwen2)."""
    policy, tokens = policy_of(kind, **(WINDOWS[kind] if window else {})), made_tokens()
    rows = np.arange(len(tokens))
    with torch.no_grad():
        got, _ = LogProbs(policy).eval()(tokens.batch(rows, policy))
    want = [
        plain_logprobs(policy.model, tokens.prompts[i], y)
        for i in rows
        for y in (tokens.chosen[i], tokens.rejected[i])
    ]
    assert (got - torch.cat(want)).abs().max() < 1e-5
    if window:  # the window is shorter than the rows, and it matters
        config = copy.deepcopy(policy.model.config)
        policy.model.config.sliding_window = None
        with torch.no_grad():
            wide, _ = LogProbs(policy).eval()(tokens.batch(rows, policy))
        policy.model.config = config
        assert (wide - torch.cat(want)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_cache_gives_the_same_loss(kind, fresh_cache, monkeypatch):
    policy, tokens = policy_of(kind), made_tokens()
    one = train.align(policy, tokens, use_cache=False, **SETTING)
    monkeypatch.setattr(train, "reads_alike", lambda policy: False)  # the reference is read live
    two = train.align(policy, tokens, use_cache=False, **SETTING)
    assert len(list(fresh_cache.glob("reference/*"))) == 1
    assert abs(one.log.loss[0] - math.log(2)) < 1e-6
    assert np.abs(one.log.loss - two.log.loss).max() < 1e-6 and one.log.loss.iloc[-1] < 0.6


@pytest.mark.parametrize("lora", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_policy_is_a_plain_model(kind, lora, tmp_path):
    tokens = made_tokens()
    run = train.align(policy_of(kind), tokens, lora=lora, use_cache=False, **SETTING)
    run.policy.save(tmp_path)
    assert (tmp_path / "model.safetensors").is_file() and not (
        tmp_path / "adapter_config.json"
    ).exists()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(model) is type(policy_of(kind).model) and len(model.state_dict()) == len(
        policy_of(kind).model.state_dict()
    )
    table = reference_logprobs(run.policy, tokens)
    for i in range(4):
        assert (
            plain_logprobs(model, tokens.prompts[i], tokens.chosen[i])
            - torch.tensor(table.chosen[i])
        ).abs().max() < 1e-5
    assert bool(adapters.described(run.policy.model)) == bool(lora), (
        "saving leaves the policy as it is"
    )


# ---------------------------------------------------------------- adapters


def switched_off(policy):
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [m for m in policy.model.modules() if isinstance(m, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    return len(layers)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_off_is_the_reference(kind, bf16):
    """Exactly: the base is shared, not copied, and not changed; the adapter is all that moved."""
    reference, tokens = dataclasses.replace(policy_of(kind), bf16=bf16), made_tokens()
    given = weights(reference.model)
    run = train.align(reference, tokens, lora=3, use_cache=False, **SETTING)
    assert abs(run.log.loss[0] - math.log(2)) < 1e-6 and run.log.loss.iloc[-1] < 0.68
    assert same(given, weights(reference.model)) and all(
        p.requires_grad for p in reference.model.parameters()
    )
    base, own = (
        dict(reference.base.model.named_parameters()),
        dict(run.policy.model.named_parameters()),
    )
    moved = {name: p for name, p in own.items() if p.requires_grad}
    assert all(".lora_" in name and p.dtype == torch.float32 for name, p in moved.items())
    assert not any("lm_head" in name for name in moved) and any(
        p.abs().max() > 0 for n, p in moved.items() if "lora_B" in n
    )
    still = {name.replace(".base_layer", ""): p for name, p in own.items() if name not in moved}
    assert still.keys() == base.keys() and all(
        p.data_ptr() == base[name].data_ptr() for name, p in still.items()
    )
    assert {p.dtype for p in base.values()} == {torch.bfloat16 if bf16 else torch.float32}
    batch = tokens.batch(np.arange(8), reference)
    with torch.no_grad():
        of = lambda policy: LogProbs(policy).eval()(batch)[0]
        on, frozen = of(run.policy), of(reference.base)
        layers = switched_off(run.policy)
        assert torch.equal(of(run.policy), frozen) and (on - frozen).abs().max() > 0.01
    assert layers == 2 * (4 if kind == "gpt2" else 7), "every linear layer but the output head"


def test_the_base_in_bfloat16_keeps_its_angles():
    """Rotary frequencies in bfloat16 would be off by a radian at position 500: only weights are cast."""
    policy = dataclasses.replace(policy_of("llama"), bf16=True)
    base = policy.base
    assert base.model.model.rotary_emb.inv_freq.dtype == torch.float32 and base.base is base
    assert base.hash != policy.hash and policy_of("llama").base.hash == policy_of("llama").hash
    with torch.no_grad():
        batch = made_tokens().batch(np.arange(8), policy)
        assert (
            LogProbs(base).eval()(batch)[0] - LogProbs(policy).eval()(batch)[0]
        ).abs().max() < 0.1


def test_a_run_with_an_adapter_is_found_again_and_stores_the_adapter_only(fresh_cache):
    reference, tokens = policy_of("llama"), made_tokens()
    one, two = (train.align(reference, tokens, lora=2, **SETTING) for _ in range(2))
    assert (one.cached, two.cached) == (False, True) and one.policy.hash == two.policy.hash
    assert same(weights(one.policy.model), weights(two.policy.model)) and one.log.equals(two.log)
    (entry,) = fresh_cache.glob("policy/*")
    arrays, _ = cache.load("policy", entry.stem)
    assert all(".lora_" in name or name.startswith("log.") for name in arrays)
    others = [dict(lora=3), dict(), dict(lora=2, seed=1)]
    runs = [train.align(reference, tokens, **SETTING | change) for change in others]
    assert not any(run.cached for run in runs)
    assert len({run.policy.hash for run in (one, *runs)}) == 4


def test_the_hash_knows_the_adapters_alpha():
    one, two = (adapters.prepare(policy_of("llama"), rank=2, seed=0) for _ in range(2))
    two.model.peft_config["default"].lora_alpha = 8
    assert (
        same(weights(one.model), weights(two.model))
        and one.hash != two.hash != policy_of("llama").hash
    )


def test_the_seed_alone_draws_the_adapter():
    policy, before = policy_of("llama"), torch.get_rng_state()
    one, two, three = (adapters.prepare(policy, rank=2, seed=s).model for s in (0, 1, 0))
    assert torch.equal(before, torch.get_rng_state()) and not same(weights(one), weights(two))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert same(weights(one), weights(adapters.prepare(policy, rank=2, seed=0).model))
    assert same(weights(one), weights(three))


@pytest.mark.parametrize("bf16", [False, True])
def test_a_run_with_an_adapter_resumes_bitwise(bf16, fresh_cache, monkeypatch):
    reference, tokens = dataclasses.replace(policy_of("qwen2"), bf16=bf16), made_tokens()
    straight = train.align(reference, tokens, lora=2, use_cache=False, **SETTING)
    real, calls = train.log_ratios, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 5:
            raise Stop
        return real(*args)

    monkeypatch.setattr(train, "log_ratios", interrupted)
    with pytest.raises(Stop):
        train.align(reference, tokens, lora=2, save_every=3, **SETTING)
    (state,) = fresh_cache.glob("partial/*/state-*")
    assert all(".lora_" in name for name in load_file(state / "0.safetensors"))
    calls.clear()
    resumed = train.align(reference, tokens, lora=2, save_every=3, **SETTING)
    assert len(calls) == 3, "steps 4 to 6 only"
    assert same(
        weights(straight.policy.model), weights(resumed.policy.model)
    ) and straight.log.equals(resumed.log)


@pytest.mark.parametrize("bf16", [False, True])
def test_training_goes_on_with_the_same_adapter(bf16):
    """C-DPO's warm start: the second run begins where the first ended, on the same base."""
    reference, tokens = dataclasses.replace(policy_of("mistral"), bf16=bf16), made_tokens()
    first = train.align(reference, tokens, lora=2, use_cache=False, **SETTING)
    kept = weights(first.policy.model)
    more = dict(lora=2, use_cache=False, start=first.policy)
    again = train.align(reference, tokens, **SETTING | more | {"batch_size": 16, "steps": 1})
    one, two = (reference_logprobs(p, tokens) for p in (first.policy, reference.base))
    h = [
        sum(x.sum() for x in (w, -l)) - sum(x.sum() for x in (rw, -rl))
        for w, l, rw, rl in zip(one.chosen, one.rejected, two.chosen, two.rejected)
    ]
    assert again.log.loss[0] == pytest.approx(
        np.log1p(np.exp(-0.5 * np.array(h))).mean(), abs=2e-3 if bf16 else 1e-5
    )
    assert same(kept, weights(first.policy.model)) and adapters.described(again.policy.model) == [
        2,
        4.0,
    ]
    assert not same(kept, weights(again.policy.model))
    assert (
        next(again.policy.model.parameters()).data_ptr()
        == next(reference.base.model.parameters()).data_ptr()
    )


def test_what_an_adapter_cannot_do_is_refused():
    reference, tokens = policy_of("llama"), made_tokens()
    adapted = train.align(
        reference, tokens, lora=2, use_cache=False, **SETTING | {"steps": 1}
    ).policy
    for options, message in (
        (dict(start=adapted), r"lora=0: .* adapter of rank 2; .*policy.merged\(\)"),
        (dict(start=adapted, lora=4), "lora=4: the policy has an adapter of rank 2"),
        (dict(lora=-1), "lora=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            train.align(reference, tokens, use_cache=False, **SETTING, **options)


def test_an_adapter_on_an_adapted_reference_stands_on_the_merged_one():
    """SACPO's second stage: the reference is the first stage's policy, and the loss starts at ln 2."""
    tokens = made_tokens()
    first = train.align(policy_of("gpt2"), tokens, lora=2, use_cache=False, **SETTING).policy
    second = train.align(first, tokens, lora=2, use_cache=False, **SETTING | {"seed": 1})
    assert abs(second.log.loss[0] - math.log(2)) < 1e-6
    fresh = train.align(first.merged(), tokens, use_cache=False, **SETTING)
    assert abs(fresh.log.loss[0] - math.log(2)) < 1e-6 and not adapters.described(
        fresh.policy.model
    )
    merged, live = (reference_logprobs(p, tokens) for p in (first.merged(), first))
    assert max(np.abs(a - b).max() for a, b in zip(merged.chosen, live.chosen)) < 1e-5


def test_fine_tuning_with_an_adapter():
    policy, tokens = policy_of("gpt2"), made_tokens()
    setting = dict(seed=0, steps=12, batch_size=8, learning_rate=1e-2, use_cache=False)
    run = train.fine_tune(policy, tokens.prompts, tokens.chosen, lora=4, **setting)
    assert run.log.loss.iloc[-1] < run.log.loss[0] and adapters.described(run.policy.model) == [
        4,
        8.0,
    ]


# ---------------------------------------------------------------- checkpointing and other heads


@pytest.mark.parametrize("lora", [0, 2])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_checkpointing_changes_nothing_but_the_memory(kind, lora, monkeypatch):
    """transformers checkpoints in train mode only; the configuration's dropout stays silent all the same."""
    more = (
        dict(attn_pdrop=0.1, resid_pdrop=0.1, embd_pdrop=0.1)
        if kind == "gpt2"
        else dict(attention_dropout=0.1)
    )
    policy, tokens = policy_of(kind, **more), made_tokens()
    inner = type(
        policy.model.base_model.h[0].mlp
        if kind == "gpt2"
        else policy.model.base_model.layers[0].mlp
    )
    monkeypatch.setattr(train, "reads_alike", lambda policy: False)  # no table: every step reads it
    real, calls, runs = inner.forward, [], []
    monkeypatch.setattr(
        inner, "forward", lambda self, *a, **k: (calls.append(1), real(self, *a, **k))[1]
    )
    for checkpointing in (False, True):
        calls.clear()
        runs.append(
            train.align(
                policy,
                tokens,
                lora=lora,
                checkpointing=checkpointing,
                use_cache=False,
                **SETTING,
            )
        )
        assert len(calls) == SETTING["steps"] * 2 * (3 if checkpointing else 2), (
            "two layers, twice for the gradient"
        )
    one, two = runs
    assert np.abs(one.log.to_numpy() - two.log.to_numpy()).max() < 1e-5
    assert (
        one.policy.model.base_model(torch.tensor([[5, 6]])).last_hidden_state
        - two.policy.model.base_model(torch.tensor([[5, 6]])).last_hidden_state
    ).abs().max() < 1e-4
    parts = [m for m in two.policy.model.modules() if isinstance(m, torch.nn.Dropout)]
    rates = [
        m.attention_dropout for m in two.policy.model.modules() if hasattr(m, "attention_dropout")
    ]
    assert {m.p for m in parts} == {0.1} if kind == "gpt2" else set(rates) == {0.1}, (
        "dropout is there again"
    )
    assert not two.policy.model.training and not two.policy.model.is_activation_checkpointing
    embedding = two.policy.model.get_input_embeddings()
    assert not embedding._forward_hooks, "nothing is left behind"


def test_fine_tuning_with_checkpointing_keeps_dropout():
    policy, tokens = policy_of("gpt2"), made_tokens()
    setting = dict(seed=0, steps=3, batch_size=8, learning_rate=1e-3, use_cache=False)
    runs = [
        train.fine_tune(policy, tokens.prompts, tokens.chosen, checkpointing=c, **setting)
        for c in (False, True)
    ]
    assert np.abs(runs[0].log.loss - runs[1].log.loss).max() < 1e-4, (
        "the same dropout, drawn again in the backward pass"
    )
    quiet = policy_of("gpt2", attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)
    assert (
        abs(
            train.fine_tune(quiet, tokens.prompts, tokens.chosen, **setting).log.loss[0]
            - runs[0].log.loss[0]
        )
        > 1e-3
    )


def test_a_module_with_a_head_is_trained_stored_and_resumed(fresh_cache, monkeypatch):
    policy = policy_of("llama", tie_word_embeddings=False)
    order, calls = train.batch_order(12, 6, 4, 0), []
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 40, (12, 5)))

    def loss_of(module, rows):
        calls.append(1)
        if len(calls) == 5 and stop:
            raise Stop
        loss = (module(ids[rows]) - ids[rows, 0] / 20).square().sum()
        return loss, {"loss": loss.item()}

    setting = train.Training(steps=6, batch_size=4, learning_rate=1e-2, seed=3, save_every=3)
    trained = partial(
        train.run_training, policy, loss_of, order, setting, wrap=WithHead, name="head"
    )
    stop = False
    one = trained(asked=None)
    calls.clear()
    stop = True
    with pytest.raises(Stop):
        trained(asked={})
    stop = False
    two, three = trained(asked={}), trained(asked={})
    assert three.cached and not two.cached and isinstance(three.module, WithHead)
    assert same(weights(one.module), weights(two.module)) and same(
        weights(one.module), weights(three.module)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        start = WithHead(policy.copy())
    assert not torch.equal(one.module.head.weight, start.head.weight), "the head is trained"
    assert three.policy.model is three.module.model and not three.module.training
    assert torch.equal(one.module.model.lm_head.weight, policy.model.lm_head.weight)


def test_packed_rows_with_an_adapter_are_what_transformers_reads():
    """The adapter works through the model's own forward too: sampling and packed rows see the same policy."""
    tokens = made_tokens()
    policy = train.align(policy_of("qwen2"), tokens, lora=2, use_cache=False, **SETTING).policy
    batch = pack(tokens.prompts[:3], [tokens.chosen[:3]], pad_id=0)
    with torch.no_grad():
        got = LogProbs(policy).eval()(batch)[0]
    want = torch.cat(
        [plain_logprobs(policy.model, tokens.prompts[i], tokens.chosen[i]) for i in range(3)]
    )
    assert (got - want).abs().max() < 1e-5
