"""Adapters in the fast forward against peft's own: values, gradients of A and B, and what goes the plain way."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.tiny_models import made_tokens, policy_of

from safealign_utils import train
from safealign_utils.engine import fast_llama
from safealign_utils.engine import lora as adapters
from safealign_utils.logprobs import LogProbs

KINDS = ["llama", "qwen2", "mistral"]
DTYPES = [("llama", "float64", 1e-10), *((kind, "float32", 1e-4) for kind in KINDS)]
SETTING = dict(beta=0.5, steps=4, batch_size=8, learning_rate=5e-3, seed=0, use_cache=False)


def adapted(kind, dtype, rank=3):
    """A policy with an adapter whose B is not 0, and 8 pairs for it."""
    policy = adapters.prepare(policy_of(kind).to(dtype).base, rank=rank, seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for name, p in policy.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.05)
    return policy, made_tokens(8)


def found(policy, tokens, monkeypatch, *, plain):
    """(log-probs, gradients of A and B) of a weighted sum."""
    with monkeypatch.context() as patch:
        if plain:
            patch.setattr(fast_llama, "fits", lambda *given: False)
        policy.model.zero_grad()
        logp, _ = LogProbs(policy)(tokens.batch(np.arange(len(tokens)), policy))
        (logp * torch.linspace(-1, 1, len(logp), dtype=logp.dtype)).sum().backward()
    trained = [(name, p) for name, p in policy.model.named_parameters() if p.requires_grad]
    return logp.detach(), {name: p.grad.clone() for name, p in trained}


def layers_of(policy):
    return [m for m in policy.model.modules() if hasattr(m, "lora_A")]


def usual(policy):
    """Whether all adapted layers are those that the fast forward reads."""
    return all(adapters.parts_of(m)[0] is m.base_layer for m in layers_of(policy))


def fits(policy, tokens):
    with torch.autocast("cpu", torch.bfloat16, enabled=policy.bf16):
        return fast_llama.fits(policy.model, tokens.batch([0, 1], policy))


@pytest.mark.parametrize("kind, dtype, tolerance", DTYPES)
def test_values_and_gradients_are_those_of_peft(kind, dtype, tolerance, monkeypatch):
    policy, tokens = adapted(kind, dtype)
    assert fits(policy, tokens) and usual(policy)
    plain, fast = (found(policy, tokens, monkeypatch, plain=p) for p in (True, False))
    assert (plain[0] - fast[0]).abs().max() < tolerance
    assert len(plain[1]) == 2 * 2 * 7, "A and B of seven maps in two layers, and nothing else"
    for name, grad in plain[1].items():
        assert grad.abs().max() > 0, name
        assert (grad - fast[1][name]).abs().max() < tolerance * max(1.0, grad.abs().max()), name
    assert all(p.grad is None for p in policy.model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_as_close_as_peft(kind, monkeypatch):
    """To the same weights in float32, log-probs and gradients: at least as close as the plain way."""
    policy, tokens = adapted(kind, "bfloat16")
    assert policy.model.dtype == torch.bfloat16 and fits(policy, tokens) and usual(policy)
    exact = dataclasses.replace(policy.copy(), bf16=False)
    exact.model.float()
    true = found(exact, tokens, monkeypatch, plain=True)
    gaps = []
    for plain in (True, False):
        logp, grads = found(policy, tokens, monkeypatch, plain=plain)
        off = sum(float((g - true[1][name]).square().sum()) for name, g in grads.items())
        assert all(g.dtype == torch.float32 for g in grads.values())
        gaps.append([float((logp - true[0]).abs().mean()), off**0.5])
    size = sum(float(g.square().sum()) for g in true[1].values()) ** 0.5
    assert gaps[1][0] < 1.2 * gaps[0][0] and gaps[1][0] < 0.05, gaps
    assert gaps[1][1] < 1.2 * gaps[0][1] and gaps[1][1] < 0.05 * size, (gaps, size)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_is_the_reference_to_the_last_bit(kind, dtype):
    base, tokens = policy_of(kind).to(dtype).base, made_tokens()
    fresh = adapters.prepare(base, rank=4, seed=0)
    batch = tokens.batch(np.arange(len(tokens)), base)
    with torch.no_grad():
        one, two = (LogProbs(policy).eval()(batch)[0] for policy in (fresh, base))
    assert fits(fresh, tokens) and fits(base, tokens) and torch.equal(one, two)


def test_small_changes_are_not_rounded_away_with_the_weights():
    """Why A and B are computed beside W: added to a W in bfloat16 most of a short training is lost."""
    base, tokens = policy_of("llama").to("bfloat16").base, made_tokens()
    policy = adapters.prepare(base, rank=4, seed=0)
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            if "lora_B" in name:
                p.fill_(1e-4)
        layer = layers_of(policy)[0]
        whole, (down, up) = layer.base_layer.weight, adapters.parts_of(layer)[1]
        kept = (whole.float() + up @ down).bfloat16() != whole
        assert kept.float().mean() < 0.2
        batch = tokens.batch(np.arange(len(tokens)), base)
        one, two = (LogProbs(p).eval()(batch)[0] for p in (policy, base))
    assert (one != two).float().mean() > 0.5


def test_training_is_the_same(monkeypatch):
    """Steps of the one loop, float32: fast and plain, with and without checkpointing."""
    logs = []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(fast_llama, "fits", lambda *given: False)
        for checkpointing in (False, True):
            more = dict(lora=3, checkpointing=checkpointing)
            logs.append(train.align(policy_of("llama"), made_tokens(), **SETTING, **more).log)
    for log in logs[1:]:
        assert np.abs(log.to_numpy() - logs[0].to_numpy()).max() < 1e-5


def test_bfloat16_takes_the_fast_forward_for_policy_and_reference(monkeypatch):
    asked, real = [], fast_llama.log_probs
    monkeypatch.setattr(
        fast_llama, "log_probs", lambda model, batch: (asked.append(model), real(model, batch))[1]
    )
    log = train.align(policy_of("llama").to("bfloat16"), made_tokens(), lora=3, **SETTING).log
    assert len(asked) == 2 * len(log) and len(set(map(id, asked))) == 2
    assert log.loss[0] == pytest.approx(np.log(2), abs=1e-6)


def test_weights_in_bfloat16_without_autocast_go_the_plain_way():
    """A model that is held in bfloat16, read in its own type: transformers' forward, as it is."""
    policy, tokens = adapted("llama", "bfloat16")
    assert not fits(dataclasses.replace(policy, bf16=False), tokens)


def test_unusual_adapters_are_called_as_modules(monkeypatch):
    """Dropout, a bias of B, a merged or changed layer, another kind: peft's own forward answers."""
    policy, tokens = adapted("llama", "float64")
    layer = policy.model.base_model.layers[0].mlp.down_proj
    plain = lambda: adapters.parts_of(layer) == (layer, None)
    assert not plain()
    with monkeypatch.context() as patch:
        patch.setitem(layer.lora_dropout._modules, "default", torch.nn.Dropout(0.1))
        assert plain()
    with monkeypatch.context() as patch:
        patch.setitem(layer.lora_B._modules, "default", torch.nn.Linear(3, 16))
        assert plain()
    with monkeypatch.context() as patch:
        patch.setattr(type(layer), "forward", lambda self, x: 0 * x)
        assert plain()
    with monkeypatch.context() as patch:
        patch.setattr(layer, "_active_adapter", [])
        assert plain()
    layer.base_layer.weight.requires_grad_(True)
    assert plain()
    layer.base_layer.weight.requires_grad_(False)
    before = found(policy, tokens, monkeypatch, plain=False)[0]
    layer.merge()
    assert plain()
    after, grads = found_without(policy, tokens, layer)
    assert (before - after).abs().max() < 1e-10 and grads
    layer.unmerge()
    layer.enable_adapters(False)
    assert adapters.parts_of(layer) == (layer.base_layer, None)
    assert fits(policy, tokens), "whichever way a layer answers"


def found_without(policy, tokens, layer):
    """Log-probs, and whether the other layers get gradients, with one layer merged."""
    policy.model.zero_grad()
    logp, _ = LogProbs(policy)(tokens.batch(np.arange(len(tokens)), policy))
    logp.sum().backward()
    others = [m for m in layers_of(policy) if m is not layer]
    return logp.detach(), all(m.lora_A["default"].weight.grad is not None for m in others)
