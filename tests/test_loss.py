"""The one loss and the hot path: values, gradients, invariances, refusals."""

import math

import numpy as np
import pytest
import torch

from safealign_utils import pairs
from safealign_utils.logprobs import LogProbs, log_ratios, reference_logprobs
from safealign_utils.loss import check_levers, ordered, preference_loss
from safealign_utils.packing import pack, split
from safealign_utils.policy import Policy, new_policy
from safealign_utils.references import word_tokenizer


def numpy_loss(w, l, mask_w, mask_l, beta, p, margin):
    """An independent float64 version: loss [B] and its gradients by the token log-ratios."""
    z = beta * ((mask_w * w).sum(1) - (mask_l * l).sum(1)) - margin
    loss = p * np.logaddexp(0, -z) + (1 - p) * np.logaddexp(0, z)
    slope = 1 / (1 + np.exp(-z)) - p
    return loss, slope[:, None] * beta * mask_w, -slope[:, None] * beta * mask_l


@pytest.mark.parametrize("soft", [False, True])
def test_loss_and_gradient_equal_numpy(soft):
    g = np.random.default_rng(0)
    w, l = g.normal(size=(2, 16, 9)) * 3
    mask_w, mask_l = (g.random((2, 16, 9)) < 0.6).astype(float)
    p = g.random(16) if soft else np.ones(16)
    margin = np.zeros(16) if soft else g.normal(size=16) * 4
    W, L = (torch.tensor(a, requires_grad=True) for a in (w, l))
    out = preference_loss(
        W,
        L,
        beta=0.3,
        p=torch.tensor(p),
        margin=torch.tensor(margin),
        tokens_w=torch.tensor(mask_w),
        tokens_l=torch.tensor(mask_l),
    )
    out.loss.sum().backward()
    loss, grad_w, grad_l = numpy_loss(w, l, mask_w, mask_l, 0.3, p, margin)
    assert np.abs(out.loss.detach().numpy() - loss).max() < 1e-10
    assert np.abs(W.grad.numpy() - grad_w).max() < 1e-10
    assert np.abs(L.grad.numpy() - grad_l).max() < 1e-10


def test_swapping_the_responses_changes_nothing():
    g = torch.Generator().manual_seed(0)
    w, l = torch.randn(2, 32, 7, generator=g, dtype=torch.float64)
    p, margin = (
        torch.rand(32, generator=g, dtype=torch.float64),
        torch.randn(32, generator=g, dtype=torch.float64),
    )
    one = preference_loss(w, l, beta=0.5, p=p, margin=margin).loss
    other = preference_loss(l, w, beta=0.5, p=1 - p, margin=-margin).loss
    assert torch.allclose(one, other, atol=1e-14)


def test_start_is_ln2_or_softplus_of_the_margin():
    zero = torch.zeros(3, 4, dtype=torch.float64)
    assert torch.allclose(
        preference_loss(zero, zero, beta=0.5).loss, torch.full((3,), math.log(2)).double()
    )
    margin = torch.tensor([0.0, 2.0, 10.0], dtype=torch.float64)
    out = preference_loss(zero, zero, beta=0.5, margin=margin).loss
    assert torch.allclose(out, torch.nn.functional.softplus(margin))


def test_extreme_log_ratios_stay_finite():
    huge = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    loss = preference_loss(huge, -huge, beta=1.0).loss
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(huge.grad).all()


@pytest.mark.parametrize(
    "p, margin, beta, words",
    [
        ([1.0, 1.2], [0.0, 0.0], 0.5, "p=1.2"),
        ([float("nan")], [0.0], 0.5, "p=nan"),
        ([1.0], [0.0], 0.0, "beta=0.0"),
        ([1.0], [0.0], float("inf"), "beta=inf"),
        ([1.0], [float("inf")], 0.5, "margin"),
        ([1.0, 0.7], [2.0, 2.0], 0.5, "pair 1"),
    ],
)
def test_refused_levers(p, margin, beta, words):
    with pytest.raises(ValueError, match=words):
        check_levers(np.array(p), np.array(margin), beta)


def test_margin_with_a_hard_label_is_allowed():
    check_levers(np.array([1.0, 0.0, 0.5]), np.array([3.0, -3.0, 0.0]), 0.5)


# ---------------------------------------------------------------- the hot path


def plain_logprobs(policy, prompt, response):
    """Token log-probs by one ordinary forward pass over prompt and response."""
    ids = torch.tensor([[*prompt, *response]])
    with torch.no_grad():
        logits = policy.model(ids).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(response)), response].numpy()


def llama(seed=0, words=30):
    tokenizer = word_tokenizer([f"w{i}" for i in range(words)])
    return new_policy(tokenizer, seed=seed).to("float64")


def architectures():
    import transformers as t

    small = dict(
        vocab_size=33,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
    )
    yield "llama", t.LlamaForCausalLM(t.LlamaConfig(num_key_value_heads=2, **small))
    yield "qwen2", t.Qwen2ForCausalLM(t.Qwen2Config(num_key_value_heads=2, **small))
    yield "mistral", t.MistralForCausalLM(t.MistralConfig(num_key_value_heads=2, **small))
    yield (
        "gpt2",
        t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=33, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0)
        ),
    )


def test_packed_rows_equal_plain_forward_on_real_architectures():
    g = np.random.default_rng(0)
    for name, model in architectures():
        policy = Policy(model.double().eval(), llama().tokenizer)
        prompts = [g.integers(3, 33, n) for n in (5, 1, 9)]
        chosen, rejected = (
            [g.integers(3, 33, n) for n in lengths] for lengths in ((4, 7, 1), (6, 2, 3))
        )
        batch = pack(prompts, [chosen, rejected], pad_id=0)
        with torch.no_grad():
            logp, _ = LogProbs(policy)(batch)
        tables = split(logp, np.array([4, 7, 1]), np.array([6, 2, 3]))
        for table, responses in zip(tables, (chosen, rejected)):
            for row, prompt, response in zip(table, prompts, responses):
                wanted = plain_logprobs(policy, prompt, response)
                assert np.abs(row[: len(response)].numpy() - wanted).max() < 1e-10, name
                assert (row[len(response) :] == 0).all()


def test_mask_by_hand_on_five_tokens():
    """Prompt of two tokens, response of three: read at places 1, 2, 3, and the last token is no input."""
    batch = pack([np.array([7, 8])], [[np.array([4, 5, 6])]], pad_id=0)
    assert batch.ids.tolist() == [[7, 8, 4, 5]]
    assert batch.source.tolist() == [1, 2, 3] and batch.target.tolist() == [4, 5, 6]
    two = pack([np.array([7, 8])], [[np.array([4, 5])], [np.array([9, 6])]], pad_id=0)
    assert two.ids.tolist() == [[7, 8, 4, 9]] and two.positions.tolist() == [[0, 1, 2, 2]]
    assert two.mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]


def loss_of(policy, tokens, rows, reference, **batch_options):
    w, l, _ = log_ratios(LogProbs(policy).eval(), tokens, rows, policy, reference)
    return preference_loss(w, l, beta=0.5).loss.detach()


@pytest.fixture(scope="module")
def moved(reference):
    """A policy that differs from the reference."""
    other = reference.copy()
    with torch.no_grad():
        for i, weights in enumerate(other.model.parameters()):
            weights *= 1 + 0.05 * math.sin(i + 1)
    return other


def test_same_loss_for_order_split_and_reference(tokens, reference, moved):
    rows = np.arange(16)
    table = reference_logprobs(reference, tokens)
    whole = loss_of(moved, tokens, rows, table)
    assert not torch.allclose(whole, torch.full_like(whole, math.log(2)), atol=1e-3)
    live = loss_of(moved, tokens, rows, LogProbs(reference).eval())
    parts = torch.cat([loss_of(moved, tokens, part, table) for part in np.array_split(rows, 5)])
    order = np.random.default_rng(0).permutation(16)
    mixed = loss_of(moved, tokens, rows[order], table)
    assert torch.allclose(whole, live, atol=1e-9)
    assert torch.allclose(whole, parts, atol=1e-9)
    assert torch.allclose(whole[torch.from_numpy(order)], mixed, atol=1e-9)


def test_loss_starts_at_ln2(tokens, reference):
    table = reference_logprobs(reference, tokens)
    assert (loss_of(reference, tokens, np.arange(64), table) - math.log(2)).abs().max() < 1e-6
    single = reference.to("float32")
    table = reference_logprobs(single, tokens)
    assert (loss_of(single, tokens, np.arange(64), table) - math.log(2)).abs().max() < 1e-5


def test_bfloat16_starts_near_ln2(tokens, reference):
    fast = reference.to("bfloat16")
    table = reference_logprobs(fast, tokens)
    assert (loss_of(fast, tokens, np.arange(16), table) - math.log(2)).abs().max() < 2e-2


def test_grammar_softmax_has_no_leak(tokens, reference):
    import dataclasses

    inside = dataclasses.replace(reference, constrained=True)
    batch = tokens.batch(np.arange(8), reference)
    with torch.no_grad():
        plain, mass = LogProbs(reference)(batch)
        constrained, _ = LogProbs(inside)(batch)
    assert (
        torch.allclose(constrained, plain - mass, atol=1e-10)
        and (mass <= 1e-12).all()
        and mass.min() < -1e-6
    )
    forced = batch.allowed.sum(1) == 1
    assert constrained[forced].abs().max() < 1e-10


def test_grammar_softmax_needs_the_grammar(reference):
    import dataclasses

    batch = pack([np.array([5, 6])], [[np.array([7, 2])]], pad_id=0)
    with pytest.raises(ValueError, match="allowed tokens"):
        LogProbs(dataclasses.replace(reference, constrained=True))(batch)


def test_reference_cache_is_keyed_by_content(tokens, reference, fresh_cache):
    reference_logprobs(reference, tokens)
    reference_logprobs(reference, tokens)
    assert len(list(fresh_cache.glob("trie/*"))) == 1
    reference_logprobs(reference.to("float32"), tokens)
    assert len(list(fresh_cache.glob("trie/*"))) == 2


def test_soft_labels():
    import pandas as pd

    table = pairs.soft_label(pd.DataFrame({"x": [0, 1, 2]}), [1.0, 0.0, 2.0], [0.0, 1.0, 2.0])
    assert table.chosen.tolist() == [0, 1, 0]
    assert table.p.tolist() == pytest.approx([1 / (1 + math.exp(-1))] * 2 + [0.5], abs=1e-9)


def test_policy_hash_sees_how_the_weights_are_used(reference):
    other = reference.copy()
    other.model.config.num_attention_heads = 8
    assert other.hash != reference.hash and reference.copy().hash == reference.hash


@pytest.mark.parametrize("kind", ["granite", "gpt2", "llama"])
def test_architectures_that_would_be_misread_are_refused(tmp_path, kind):
    import transformers as t

    from safealign_utils.real.models import load_policy

    shape = dict(
        vocab_size=33,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = {
            "granite": lambda: t.GraniteForCausalLM(
                t.GraniteConfig(logits_scaling=4.0, initializer_range=0.5, **shape)
            ),
            "gpt2": lambda: t.GPT2LMHeadModel(
                t.GPT2Config(vocab_size=33, n_embd=32, n_layer=1, n_head=4)
            ),
            "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**shape)),
        }[kind]()
    model.save_pretrained(tmp_path)
    llama().tokenizer.save_pretrained(tmp_path)
    if kind == "granite":
        with pytest.raises(ValueError, match="granite models are misread"):
            load_policy(str(tmp_path))
    else:
        assert load_policy(str(tmp_path)).model.config.model_type == kind


# ---------------------------------------------------------------- the edges of what is allowed
def test_a_lever_that_is_not_given_is_that_of_dpo():
    g = torch.Generator().manual_seed(0)
    w, l = torch.randn(2, 8, 5, generator=g, dtype=torch.float64)
    out = preference_loss(w, l, beta=0.5)
    same = preference_loss(w, l, beta=0.5, p=1.0, margin=0.0, tokens_w=torch.ones_like(w))
    assert torch.equal(out.loss, same.loss) and torch.equal(out.z, same.z)
    assert torch.allclose(out.loss, torch.log1p((-0.5 * (w - l).sum(1)).exp()))
    assert torch.equal(out.h_w, w.sum(1)) and torch.equal(out.h_l, l.sum(1))


def test_how_small_a_gap_counts_as_a_tie():
    """Up to 1e-9 in float64, up to 1e-5 below, those themselves among them."""
    for dtype, noise in ((torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)):
        gaps = torch.tensor([noise, -noise, 1.5 * noise, -1.5 * noise], dtype=dtype)
        out = ordered(gaps)
        assert out.dtype == torch.float64 and out.tolist() == [0.5, 0.5, 1, 0], dtype
    assert ordered(torch.tensor([0.5, 2.0])).tolist() == [1, 1]


def test_levers_at_the_ends_of_what_they_can_be():
    check_levers(np.array([0.0, 1.0, 0.0]), np.array([1e300, -1e300, 0.5]), 1e-300)
    check_levers([0.0, 0.5, 1.0], [0.0, 0.0, 0.0], 1e300)
    for p, words in ((-1e-9, "p=-1e-09"), (1 + 1e-9, "p=1.0")):
        with pytest.raises(ValueError, match=words):
            check_levers(np.array([0.5, p]), np.zeros(2), 0.5)
    with pytest.raises(ValueError, match="margin=0.5 with p=0.9 on pair 1"):
        check_levers([1.0, 0.9, 0.4], [0.5, 0.5, 0.5], 0.5)
    with pytest.raises(ValueError, match="margin=2 with p=0.25 on pair 0"):
        check_levers([0.25], [2.0], 0.5)
    for margin in (float("nan"), -float("inf")):
        with pytest.raises(ValueError, match="every margin must be finite"):
            check_levers([1.0, 1.0], [0.0, margin], 0.5)
