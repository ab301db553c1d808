"""Faults of training that change numbers and nothing else: the loop, written out by hand, tells each of them."""

import math
import shutil

import numpy as np
import pytest
import torch

from safealign_utils import evaluate, logprobs, train
from safealign_utils.engine import cache
from safealign_utils.logprobs import LogProbs, log_ratios, trie_logprobs
from safealign_utils.loss import check_levers
from safealign_utils.methods.selective import TopTokens

SETTING = dict(beta=0.5, steps=12, batch_size=8, learning_rate=2e-3, seed=0)


def weights(policy):
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()])


# ---------------------------------------------------------------- the loop by hand
def by_hand(reference, tokens, *, beta, steps, batch_size, learning_rate, seed, leak_weight):
    """The loop in plain torch: AdamW with 0.9 and 0.98, the gradient's norm cut at 1, linear warm-up over a tenth
    of the steps, then a cosine to 0; the loss is a mean over the batch, with the leak's share of one response."""
    policy = reference.copy()
    net, frozen = LogProbs(policy).eval(), LogProbs(reference).eval()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1.0, betas=(0.9, 0.98), weight_decay=0.0)
    order, warm, norms = train.batch_order(len(tokens), steps, batch_size, seed), steps // 10, []
    for step in range(steps):
        rows = order[step]
        h_w, h_l, log_allowed = log_ratios(net, tokens, rows, policy, frozen)
        z = beta * (h_w.sum(1) - h_l.sum(1))
        loss = torch.log1p(torch.exp(-z)).mean()
        loss = loss + leak_weight * -log_allowed.sum() / (2 * len(rows))
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)))
        share = (step + 1) / warm if step < warm else 1.0
        if step >= warm:
            share = 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
        optimizer.param_groups[0]["lr"] = learning_rate * share
        optimizer.step()
    return policy, norms


def test_the_loop_is_the_one_that_is_described(tokens, reference):
    """Learning rates, their warm-up, clipping, AdamW's memory, the leak's weight: a fault in one moves the weights."""
    asked = SETTING | dict(steps=20, leak_weight=0.5)
    run = train.align(reference, tokens, use_cache=False, **asked)
    policy, norms = by_hand(reference, tokens, **asked)
    assert max(norms) > 1.5, "the norm is cut somewhere, or this would not see it"
    assert np.allclose(run.log.grad_norm, norms, rtol=1e-7)
    moved = (weights(run.policy) - weights(reference)).abs().max()
    assert (weights(run.policy) - weights(policy)).abs().max() < 1e-7 * moved


def test_the_schedule_at_every_step():
    rates = [train.rate_at(step, 20) for step in range(20)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[11] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 17 / 18)))
    assert all(a > b for a, b in zip(rates[2:], rates[3:])) and min(rates) > 0
    assert train.rate_at(0, 1) == 1.0 and train.rate_at(1, 2) == 1.0


def test_the_first_step_moves_every_weight_by_the_learning_rate(tokens, reference):
    """AdamW's first step is the rate itself, in the direction of the gradient's sign."""
    run = train.align(reference, tokens, use_cache=False, **SETTING | dict(steps=1))
    moved = (weights(run.policy) - weights(reference)).abs()
    assert moved.max() == pytest.approx(SETTING["learning_rate"], rel=1e-3)


def test_every_epoch_has_an_order_of_its_own():
    order = train.batch_order(12, 9, 4, seed=0).reshape(3, 12)
    assert all(sorted(epoch) == list(range(12)) for epoch in order.tolist())
    assert len({tuple(epoch) for epoch in order.tolist()}) == 3


def test_what_is_logged_is_of_all_tokens(tokens, reference, other):
    """With a token lever too: the rewards of a log are full log-ratios, and only the loss is masked."""
    rows, frozen, lever = np.arange(8), LogProbs(reference).eval(), TopTokens(0.3)
    module = LogProbs(other).eval()
    asked = dict(beta=0.5, token_lever=lever)
    _, sums = train.Objective(other, tokens, frozen, **asked)(module, rows)
    w, l, _ = log_ratios(module, tokens, rows, other, frozen)
    masks = lever(w, l, *(torch.ones_like(x) * (x != 0) > 0 for x in (w, l)), rows)
    z = 0.5 * ((masks[0] * w).sum() - (masks[1] * l).sum())
    assert sums["chosen"] == pytest.approx(w.sum().item())
    assert sums["rejected"] == pytest.approx(l.sum().item())
    assert sums["z"] == pytest.approx(z.item())
    assert abs(sums["z"] - 0.5 * (sums["chosen"] - sums["rejected"])) > 0.01, (
        "the lever does something"
    )


@pytest.mark.parametrize("margin", [-1.0, 1.0, -1e-3])
def test_a_margin_of_either_sign_needs_a_hard_label(margin):
    with pytest.raises(ValueError, match="needs a hard label"):
        check_levers([1.0, 0.5], [0.0, margin], 0.5)
    check_levers([1.0, 0.0], [margin, margin], 0.5)


# ---------------------------------------------------------------- states of a run that was broken off
class Stop(Exception):
    pass


def broken_off(reference, tokens, monkeypatch, at, **changes):
    """Train, and break off in the step `at`, counted from where it began: how many steps it took."""
    real, calls = train.log_ratios, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == at:
            raise Stop
        return real(*args)

    monkeypatch.setattr(train, "log_ratios", interrupted)
    try:
        run = train.align(reference, tokens, save_every=3, **SETTING | changes)
    except Stop:
        run = None
    monkeypatch.setattr(train, "log_ratios", real)
    return run, len(calls)


def states(fresh_cache):
    """What lies in the folder of the one run that was broken off, hidden or not."""
    (folder,) = (fresh_cache / "partial").iterdir()
    return sorted(folder.iterdir())


def test_one_state_is_kept_and_it_is_the_newest(tokens, reference, fresh_cache, monkeypatch):
    broken_off(reference, tokens, monkeypatch, at=5)
    (first,) = states(fresh_cache)
    aside = fresh_cache / "aside"
    shutil.copytree(first, aside)
    _, steps = broken_off(reference, tokens, monkeypatch, at=5)  # steps 4 to 7, broken off in 8
    (second,) = states(fresh_cache)
    assert steps == 5 and second.name > first.name and not first.exists()
    shutil.move(aside, first)  # as where a process was killed before it could drop the old one
    run, steps = broken_off(reference, tokens, monkeypatch, at=100)
    assert steps == SETTING["steps"] - 6, "it goes on from the newest state"
    straight = train.align(reference, tokens, use_cache=False, **SETTING)
    assert torch.equal(weights(run.policy), weights(straight.policy))
    assert not list((fresh_cache / "partial").glob("*")), "a finished run leaves none"


def test_a_state_is_seen_when_it_is_complete_and_not_before(
    tokens, reference, fresh_cache, monkeypatch
):
    """It is written under a hidden name: another process that looks in the meantime finds none, or the one before."""
    from safealign_utils.engine import checkpoint

    seen, save = [], checkpoint.Checkpoint._save

    def look(self, folder, *more):
        failed = save(self, folder, *more)
        seen.append([p.name for p in folder.parent.iterdir() if not p.name.startswith(".")])
        return failed

    monkeypatch.setattr(checkpoint.Checkpoint, "_save", look)
    broken_off(reference, tokens, monkeypatch, at=8)
    (left,) = states(fresh_cache)
    assert len(seen) == 2 and seen[0] == [] and len(seen[1]) == 1 and seen[1] != [left.name]


# ---------------------------------------------------------------- keys
def test_where_a_training_starts_is_part_of_its_key(tokens, reference, other, fresh_cache):
    asked = SETTING | dict(steps=2)
    one = train.align(reference, tokens, **asked)
    two = train.align(reference, tokens, start=other, **asked)
    again = train.align(reference, tokens, start=other, **asked)
    assert (one.cached, two.cached, again.cached) == (False, False, True)
    assert (weights(one.policy) - weights(two.policy)).abs().max() > 1e-3
    assert torch.equal(weights(two.policy), weights(again.policy))


def test_an_exact_evaluation_is_of_its_own_prompts(reference, prompts, fresh_cache, monkeypatch):
    """Asked one after another, together, and again: each prompt has the numbers that it has from an empty cache."""
    apart = {x: trie_logprobs(reference, [x])[x] for x in prompts}
    together = trie_logprobs(reference, prompts)
    tables = evaluate.exact(reference, prompts)
    assert len({values.tobytes() for values in apart.values()}) == len(prompts)
    for i, x in enumerate(prompts):
        assert np.array_equal(apart[x], together[x]) and tables.prompts[i] == x
        assert np.array_equal(evaluate.exact(reference, [x]).logp[0], tables.logp[i])
    with monkeypatch.context() as patch:
        patch.setattr(logprobs, "token_logps", None)  # every one is found, and none computed again
        assert np.array_equal(trie_logprobs(reference, prompts)[prompts[1]], apart[prompts[1]])
    fresh_cache.rename(fresh_cache.with_name("other"))
    assert np.array_equal(trie_logprobs(reference, prompts)[prompts[1]], apart[prompts[1]])


def test_equal_bytes_of_another_type_are_another_content():
    kinds = (np.float64, np.int64, np.uint64, np.complex64)
    arrays = [np.zeros(4, kind) for kind in kinds]
    assert len({array.tobytes() for array in arrays}) == 1
    assert len({cache.digest(array) for array in arrays}) == len(kinds)
    assert len({cache.key("x", value=array) for array in arrays}) == len(kinds)
    tensors = [torch.zeros(4, dtype=kind) for kind in (torch.float64, torch.int64)]
    assert len({cache.key("x", value=tensor) for tensor in tensors}) == 2
    shapes = [np.zeros(4), np.zeros((2, 2)), np.zeros((4, 1))]
    assert len({cache.digest(array) for array in shapes}) == 3
