"""The fast forward against transformers' own: values, gradients, and what it leaves to the plain one."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.tiny_models import made_tokens, policy_of

from safealign_utils import logprobs, pairs, train
from safealign_utils.engine import fast_llama, fused
from safealign_utils.logprobs import LogProbs, token_logps
from safealign_utils.packing import pack


def found(policy, batch, *, plain, monkeypatch):
    """(log-probs, log of the allowed mass or 0, gradients) of a weighted sum of both."""
    with monkeypatch.context() as patch:
        if plain:
            patch.setattr(fast_llama, "fits", lambda *given: False)
        policy.model.zero_grad()
        logp, mass = LogProbs(policy)(batch)
        mass = torch.zeros_like(logp) if mass is None else mass
        weight = torch.linspace(-1, 1, len(logp), dtype=logp.dtype)
        ((logp * weight).sum() + 0.3 * (mass * weight.flip(0)).sum()).backward()
    grads = {name: p.grad.clone() for name, p in policy.model.named_parameters()}
    return logp.detach(), mass.detach(), grads


def compare(policy, batch, tolerance, monkeypatch):
    assert fast_llama.fits(policy.model, batch)
    plain, fast = (found(policy, batch, plain=p, monkeypatch=monkeypatch) for p in (True, False))
    assert not torch.equal(plain[2][min(plain[2])], torch.zeros(())), "there is a gradient"
    for a, b in zip(plain[:2], fast[:2]):
        assert (a - b).abs().max() < tolerance
    for name, grad in plain[2].items():
        gap = (grad - fast[2][name]).abs().max()
        assert gap < tolerance * max(1.0, grad.abs().max()), name


@pytest.fixture(scope="module")
def of_world(world, reference):
    """A policy of the world away from its reference, and pairs of few prompts: many share a prefix."""
    tokens = pairs.tokenize(pairs.label(world.pairs(64, seed=0)), reference)
    setting = dict(beta=0.1, steps=3, batch_size=16, learning_rate=1e-2, seed=0)
    return train.align(reference, tokens, **setting).policy, tokens


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 2e-4)])
def test_the_world_is_the_same(of_world, constrained, dtype, tolerance, monkeypatch):
    policy, tokens = of_world
    policy = dataclasses.replace(policy.to(dtype), constrained=constrained)
    batch = tokens.batch(np.arange(32), policy)
    assert len(fast_llama.Tokens(batch).ids) < 0.95 * int((batch.node >= 0).sum()), (
        "shared prefixes"
    )
    compare(policy, batch, tolerance, monkeypatch)


@pytest.mark.parametrize("cache", [2**30, 200, 1])
@pytest.mark.parametrize("chunk", [2**30, 224 * 5])
@pytest.mark.parametrize("answers", [1, 2, 3])
def test_any_rows_in_any_parts(of_world, answers, chunk, cache, monkeypatch):
    """Rows together or alone, the head at once or in chunks; answers of one token among them."""
    policy, draw = of_world[0], np.random.default_rng(0)
    monkeypatch.setattr(fast_llama, "CACHE", cache)
    monkeypatch.setattr(fused, "CHUNK", chunk)
    some = lambda longest: draw.integers(3, 90, draw.integers(1, longest))
    prompts = [some(9) for _ in range(7)]
    responses = [[some(12) for _ in range(7)] for _ in range(answers)]
    responses[-1][0] = responses[-1][0][:1]
    allowed = [[draw.random((len(y), 224)) > 0.3 for y in branch] for branch in responses]
    batch = pack(prompts, responses, pad_id=0, allowed=allowed)
    compare(policy, batch, 1e-12, monkeypatch)
    compare(policy, pack(prompts, responses, pad_id=0), 1e-12, monkeypatch)


@pytest.mark.parametrize("constrained", [False, True])
def test_a_policy_far_from_the_grammar_stays_finite(of_world, constrained, monkeypatch):
    """Where what is allowed has less mass than float32 can hold."""
    policy, tokens = of_world
    policy = dataclasses.replace(policy.to("float32"), constrained=constrained)
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.mul_(200)
    batch = tokens.batch(np.arange(16), policy)
    plain, fast = (found(policy, batch, plain=p, monkeypatch=monkeypatch) for p in (True, False))
    assert plain[1].min() < -100 and plain[0].isfinite().all()
    for a, b in zip(plain[:2], fast[:2]):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-3)
    assert all(grad.isfinite().all() for grad in fast[2].values())


def test_the_trie_is_the_same(of_world, monkeypatch):
    policy = dataclasses.replace(of_world[0], constrained=True)
    fast = token_logps(policy, 3)
    monkeypatch.setattr(fast_llama, "fits", lambda *given: False)
    assert np.abs(fast - token_logps(policy, 3)).max() < 1e-12


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
def test_real_architectures_are_the_same(kind, monkeypatch):
    """Fewer key heads than heads, biases of the projections, a head of its own."""
    policy, tokens = policy_of(kind), made_tokens()
    compare(policy, tokens.batch(np.arange(len(tokens)), policy), 2e-5, monkeypatch)


def test_bfloat16_is_as_close_as_autocast(of_world, monkeypatch):
    """Both stay as close to float32 as bfloat16 is."""
    policy, tokens = of_world
    exact, half = policy.to("float32"), policy.to("bfloat16")
    batch = tokens.batch(np.arange(16), policy)
    true = found(exact, batch, plain=True, monkeypatch=monkeypatch)[0]
    gaps = [
        (found(half, batch, plain=p, monkeypatch=monkeypatch)[0] - true).abs().mean()
        for p in (True, False)
    ]
    assert gaps[1] < 1.5 * gaps[0] and gaps[1] < 0.02, gaps


def test_what_is_not_its_own_goes_the_plain_way(of_world, monkeypatch):
    """A hook, a forward that somebody changed, a window, another architecture."""
    policy, tokens = of_world
    batch, fits = tokens.batch(np.arange(4), policy), fast_llama.fits
    layer = policy.model.base_model.layers[0]
    handle = layer.mlp.register_forward_hook(lambda *given: None)
    assert not fits(policy.model, batch)
    handle.remove()
    policy.model.base_model(torch.tensor([[5, 6]]), output_hidden_states=True)
    assert fits(policy.model, batch), "the idle hooks that this leaves change nothing"
    with monkeypatch.context() as patch:
        patch.setattr(layer.self_attn, "scaling", 0.5)
        assert not fits(policy.model, batch)
    bend, layer.mlp.act_fn = layer.mlp.act_fn, torch.nn.GELU()
    assert not fits(policy.model, batch)
    layer.mlp.act_fn = bend
    with monkeypatch.context() as patch:
        patch.setattr(type(layer.mlp), "forward", lambda self, x: 0 * x)
        assert not fits(policy.model, batch)
    other = made_tokens().batch([0, 1], policy_of("gpt2"))
    assert not fits(policy_of("gpt2").model, other)
    assert not fits(policy_of("mistral", sliding_window=7).model, other)
    assert fits(policy_of("mistral", sliding_window=700).model, other)


def test_checkpointing_computes_every_layer_again(monkeypatch):
    policy, tokens = policy_of("llama"), made_tokens()
    calls, layer = [], fast_llama._layer
    monkeypatch.setattr(fast_llama, "_layer", lambda *given: (calls.append(1), layer(*given))[1])
    setting = dict(beta=0.5, steps=2, batch_size=6, learning_rate=5e-3, seed=0, use_cache=False)
    logprobs.reference_logprobs(policy, tokens)
    logs, counts = [], []
    for checkpointing in (False, True):
        calls.clear()
        logs.append(train.align(policy, tokens, checkpointing=checkpointing, **setting).log)
        counts.append(len(calls))
    assert counts == [2 * 2, 2 * 2 * 2]
    assert np.abs(logs[0].to_numpy() - logs[1].to_numpy()).max() < 1e-5


def test_a_second_derivative_is_refused(of_world):
    """The gradients are written out once; a gradient of them would be wrong, so there is none."""
    policy, tokens = of_world
    logp, _ = LogProbs(policy)(tokens.batch(np.arange(2), policy))
    weights = [p for p in policy.model.parameters() if p.requires_grad]
    first = torch.autograd.grad(logp.sum(), weights, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        sum(grad.sum() for grad in first).backward()
