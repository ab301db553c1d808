"""The training loop: what it decreases, resumes, refuses and remembers; and exact evaluation."""

import contextlib
import math
import types

import numpy as np
import pytest
import torch
from helpers import tiny_models

from safealign_utils import evaluate, logprobs, train
from safealign_utils.engine import cache, sealed
from safealign_utils.logprobs import LogProbs
from safealign_utils.references import SFT, reference_policy, train_reference
from safealign_utils.world import optimum

SETTING = dict(beta=0.5, steps=12, batch_size=8, learning_rate=2e-3, seed=0)


def weights(policy):
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()])


def test_training_moves_the_policy_and_not_the_reference(tokens, reference):
    before = weights(reference).clone()
    run = train.align(reference, tokens, use_cache=False, **SETTING | {"steps": 30})
    assert torch.equal(weights(reference), before)
    assert abs(run.log.loss[0] - math.log(2)) < 1e-6
    assert run.log.loss.tail(5).mean() < 0.6 and run.log.accuracy.tail(5).mean() > 0.7
    assert (run.log.rejected.tail(5) < run.log.chosen.tail(5)).all()


def test_finished_run_is_never_trained_twice(tokens, reference, fresh_cache):
    one = train.align(reference, tokens, **SETTING)
    two = train.align(reference, tokens, **SETTING)
    other = train.align(reference, tokens, **SETTING | {"beta": 0.6})
    assert (one.cached, two.cached, other.cached) == (False, True, False)
    assert torch.equal(weights(one.policy), weights(two.policy)) and one.log.equals(two.log)
    assert two.policy.model.training is False


@pytest.mark.parametrize("change", [{"accumulate": 4}])
def test_accumulation_changes_nothing(tokens, reference, change):
    one = train.align(reference, tokens, use_cache=False, **SETTING)
    two = train.align(reference, tokens, use_cache=False, **SETTING, **change)
    assert np.abs(one.log.loss - two.log.loss).max() < 1e-6
    assert (weights(one.policy) - weights(two.policy)).abs().max() < 1e-6


class Stop(Exception):
    pass


def interrupt(reference, tokens, monkeypatch):
    """Break a run off in its 8th step, after its state was kept at step 5; returns what was patched."""
    real, calls = train.log_ratios, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 8:
            raise Stop
        return real(*args)

    monkeypatch.setattr(train, "log_ratios", interrupted)
    with pytest.raises(Stop):
        train.align(reference, tokens, save_every=5, **SETTING)
    monkeypatch.setattr(train, "log_ratios", real)
    return real


def test_resume_is_bitwise(tokens, reference, fresh_cache, monkeypatch):
    straight = train.align(reference, tokens, use_cache=False, **SETTING)
    real, calls = interrupt(reference, tokens, monkeypatch), []
    monkeypatch.setattr(train, "log_ratios", lambda *args: (calls.append(1), real(*args))[1])
    resumed = train.align(reference, tokens, save_every=5, **SETTING)
    assert len(calls) == SETTING["steps"] - 5, "it went on from the kept state, not from the start"
    assert torch.equal(weights(straight.policy), weights(resumed.policy))
    assert straight.log.equals(resumed.log)
    assert not list(fresh_cache.glob("partial/*"))


def test_resume_with_dropout_is_bitwise(fresh_cache, monkeypatch, world):
    """The random state is part of what is kept: a network with dropout resumes exactly too."""
    import transformers

    from safealign_utils.policy import Policy
    from safealign_utils.references import word_tokenizer

    tokenizer = word_tokenizer(["a", "b", "c", "d"])
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = Policy(transformers.GPT2LMHeadModel(config).eval(), tokenizer)
    x = [np.array([3, 4])] * 16
    y = [np.array([5, 6, 2])] * 16
    setting = dict(seed=1, steps=8, batch_size=4, learning_rate=1e-2)
    straight = train.fine_tune(policy, x, y, use_cache=False, **setting)
    real, calls = train.pack, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 6:
            raise Stop
        return real(*args, **options)

    monkeypatch.setattr(train, "pack", interrupted)
    with pytest.raises(Stop):
        train.fine_tune(policy, x, y, save_every=3, **setting)
    monkeypatch.setattr(train, "pack", real)
    resumed = train.fine_tune(policy, x, y, save_every=3, **setting)
    assert torch.equal(weights(straight.policy), weights(resumed.policy))
    assert straight.log.loss.nunique() == 8


def test_preference_training_has_dropout_off(reference, tokens):
    """A network with dropout in its configuration still starts at the reference: ln 2."""
    import dataclasses

    import transformers

    from safealign_utils import pairs
    from safealign_utils.policy import Policy

    config = transformers.GPT2Config(
        vocab_size=len(reference.tokenizer), n_embd=32, n_layer=1, n_head=2
    )
    policy = Policy(transformers.GPT2LMHeadModel(config).double().eval(), reference.tokenizer)
    plain = dataclasses.replace(tokens, states_w=None, states_l=None)
    assert isinstance(plain, pairs.TokenPairs)
    run = train.align(policy, plain, use_cache=False, **SETTING | {"steps": 2})
    assert abs(run.log.loss[0] - math.log(2)) < 1e-9


def test_a_damaged_state_starts_over(tokens, reference, fresh_cache, monkeypatch):
    interrupt(reference, tokens, monkeypatch)
    (state,) = fresh_cache.glob("partial/*/state-*")
    (state / "0.safetensors").write_bytes(b"")
    again = train.align(reference, tokens, save_every=5, **SETTING)
    assert torch.equal(
        weights(again.policy),
        weights(train.align(reference, tokens, use_cache=False, **SETTING).policy),
    )


def test_not_finite_stops_and_leaves_the_last_good_state(
    tokens, reference, fresh_cache, monkeypatch
):
    real, calls = train.log_ratios, []

    def poisoned(*args):
        w, l, mass = real(*args)
        calls.append(1)
        return (w * float("nan") if len(calls) == 7 else w), l, mass

    monkeypatch.setattr(train, "log_ratios", poisoned)
    with pytest.raises(
        train.NotFinite,
        match=r"step 7 of 12, batch rows \[.*last good state is kept in .*state-00000006",
    ):
        train.align(reference, tokens, **SETTING)
    assert not list(fresh_cache.glob("policy/*")), "a broken run is not stored"
    monkeypatch.setattr(train, "log_ratios", real)
    good = train.align(reference, tokens, **SETTING)
    straight = train.align(reference, tokens, use_cache=False, **SETTING)
    assert torch.equal(weights(good.policy), weights(straight.policy))


def test_a_real_divergence_is_caught(tokens, reference):
    with pytest.raises(train.NotFinite, match="try a lower learning_rate"):
        train.align(
            reference.to("float32"), tokens, use_cache=False, **SETTING | {"learning_rate": 1e30}
        )


def test_leak_penalty_needs_the_grammar_and_cuts_the_leak(tokens, reference, world):
    import dataclasses

    with pytest.raises(ValueError, match="leak_weight=0.1"):
        train.align(
            dataclasses.replace(reference, grammar=None), tokens, leak_weight=0.1, **SETTING
        )
    x = world.select("heldout")[:3]
    leaks = {}
    for w in (0.0, 1.0):
        run = train.align(
            reference, tokens, use_cache=False, leak_weight=w, **SETTING | {"steps": 30}
        )
        leaks[w] = evaluate.exact(run.policy, x).leak.mean()
    assert leaks[1.0] < 0.5 * leaks[0.0]


def test_grammar_softmax_training_has_no_leak(tokens, reference, world):
    import dataclasses

    inside = dataclasses.replace(reference, constrained=True)
    run = train.align(inside, tokens, use_cache=False, **SETTING)
    assert abs(run.log.loss[0] - math.log(2)) < 1e-6
    assert np.abs(evaluate.exact(run.policy, world.select("heldout")[:3]).leak).max() < 1e-9


def test_batches_are_fixed_by_the_seed():
    a, b, c = (train.batch_order(10, 7, 4, seed) for seed in (0, 0, 1))
    assert (a == b).all() and not (a == c).all() and a.shape == (7, 4)
    assert sorted(a.ravel()[:10]) == list(range(10))
    assert train.batch_order(3, 2, 32, 0).shape == (2, 3)


def test_batches_go_by_prompt_only_where_that_is_asked_for(tokens, reference):
    asked = dict(SETTING, steps=3, use_cache=False)
    plain, same, other = (
        train.align(reference, tokens, **asked, **more).log.loss.tolist()
        for more in ({}, dict(by_prompt=False), dict(by_prompt=True))
    )
    assert plain == same != other


def test_a_training_in_another_order_is_another_one(tokens, reference, fresh_cache):
    """Also where nothing but the order tells two of them apart."""
    training = train.Training(steps=2, batch_size=4, learning_rate=1e-3, seed=0)

    def loss_of(net, rows):
        ids = torch.tensor([[int(row) + 1 for row in rows]])
        loss = net.model(ids).logits.square().mean() * len(rows)
        return loss, {"loss": loss.item()}

    def run(*order):
        asked = dict(reference=reference, loss="mean square of the logits")
        return train.run_training(
            reference, loss_of, np.array(order), training, asked=asked, name="toy"
        )

    one, two = run([0, 1, 2, 3], [4, 5, 6, 7]), run([4, 5, 6, 7], [0, 1, 2, 3])
    assert not two.cached and one.log.loss[0] != two.log.loss[0]
    assert run([0, 1, 2, 3], [4, 5, 6, 7]).cached


def test_activations_are_computed_again_only_where_that_is_asked_for(monkeypatch):
    policy, seen = tiny_models.policy_of("qwen2"), []
    kind = type(policy.model)
    enable = kind.activation_checkpointing_enable
    spy = lambda self, given: (seen.append(given), enable(self, given))[1]
    monkeypatch.setattr(kind, "activation_checkpointing_enable", spy)
    asked = dict(SETTING, steps=1, batch_size=4, use_cache=False)
    train.align(policy, tiny_models.made_tokens(), **asked)
    assert seen == []
    train.align(policy, tiny_models.made_tokens(), checkpointing=True, **asked)
    assert seen == [{"use_reentrant": False}]


def test_gradients_of_parts_are_shared_with_the_last():
    """Processes add up their gradients once a batch, in its last part."""
    shared, one = [], torch.nn.Linear(1, 1)
    quiet = lambda net: contextlib.nullcontext(shared.append("not yet"))
    accelerator = types.SimpleNamespace(no_sync=quiet, backward=lambda loss: shared.append("add"))
    loss_of = lambda net, rows: (torch.ones(()), {"loss": float(len(rows))})
    assert train.one_batch(one, loss_of, np.arange(6), accelerator, 3) == {"loss": 6.0}
    assert shared == ["not yet", "add", "not yet", "add", "add"]


# ---------------------------------------------------------------- policies and exact evaluation


def test_packed_trie_equals_row_by_row(reference, world):
    x, grammar = int(world.select("heldout")[4]), reference.grammar
    packed = logprobs.token_logps(reference, x)
    prompt = reference.tokenizer(world.prompts[x].text)["input_ids"]
    for y in np.random.default_rng(0).choice(604, 12, replace=False):
        reply, _ = grammar.response(x, y)
        with torch.no_grad():
            logits = reference.model(torch.tensor([[*prompt, *reply]])).logits[
                0, len(prompt) - 1 : -1
            ]
        plain = logits.log_softmax(-1)[range(len(reply)), reply].numpy()
        assert np.abs(packed[grammar.paths[y, : len(reply)]] - plain).max() < 1e-6
    for group in (7, 604):
        assert np.abs(logprobs.token_logps(reference, x, group=group) - packed).max() < 1e-6


def test_leak_is_the_mass_outside(reference, world):
    """Sampling says the same: the share of sampled responses that the grammar does not know."""
    table = evaluate.exact(reference, [0])
    assert 0 < table.leak[0] < 0.1
    prompt = torch.tensor([reference.tokenizer(world.prompts[0].text)["input_ids"]] * 400)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        out = reference.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            top_k=0,
            max_new_tokens=40,
            pad_token_id=0,
        )
    known = {world.text(0, y) for y in range(604)}
    said = reference.tokenizer.batch_decode(out[:, prompt.shape[1] :], skip_special_tokens=True)
    outside = np.mean([s not in known for s in said])
    assert abs(outside - table.leak[0]) < 4 * math.sqrt(table.leak[0] / 400)


def test_metrics_of_the_reference_and_of_its_optimum(reference, world):
    x = world.select("heldout")[:6]
    ref = evaluate.exact(reference, x)
    own = evaluate.metrics(ref, ref, world)
    assert own["kl_ref"] == 0 and own["frontier_gap"] == pytest.approx(0, abs=1e-5)
    star = optimum.optimal(ref.logp, world.reward[x], beta=0.5)
    best = evaluate.metrics(evaluate.Exact(star, np.zeros(6), x), ref, world, target=star)
    assert best["kl_opt"] == pytest.approx(0, abs=1e-12) and best["frontier_gap"] == pytest.approx(
        0, abs=1e-9
    )
    assert best["reward"] > own["reward"] + 1
    safe = optimum.safe_optimal(ref.logp, world.reward[x], world.cost[x], beta=0.5)
    towards = evaluate.metrics(ref, ref, world, target=safe)
    assert towards["kl_opt"] == pytest.approx(optimum.kl(safe, ref.logp)) and np.isfinite(
        towards["kl_opt"]
    )


def test_shipped_references_are_good(world):
    x = world.select("all")[::5]
    for seed in range(5):
        policy, origin = reference_policy(world, seed=seed)
        assert origin == "shipped"
        table = evaluate.exact(policy, x)
        assert table.leak.mean() < 0.05
        assert optimum.kl(np.log(world.behaviour[x]), table.logp) < 0.03


def test_a_fresh_reference_is_as_good(world):
    """The command's own recipe, from scratch, against the shipped one of the same seed."""
    x = world.select("all")[::5]
    quality = []
    for policy in (reference_policy(world, seed=0)[0], train_reference(world, seed=0)):
        table = evaluate.exact(policy, x)
        quality.append((optimum.kl(np.log(world.behaviour[x]), table.logp), table.leak.mean()))
    (kl, leak), (fresh_kl, fresh_leak) = quality
    assert abs(kl - fresh_kl) < 0.01 and abs(leak - fresh_leak) < 0.02


def test_seeds_beyond_the_shipped_are_trained_and_said(world, fresh_cache, monkeypatch):
    from safealign_utils import references

    monkeypatch.setattr(references, "SFT", {**SFT, "steps": 3})
    policy, origin = reference_policy(world, seed=23)
    assert origin == "trained" and len(list(fresh_cache.glob("policy/*"))) == 1


def test_policy_round_trip_through_plain_transformers(reference, tmp_path):
    import transformers

    policy = reference.to("float32")
    policy.save(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "user : how do i clean the oven safely ? assistant :"
    assert tokenizer(text)["input_ids"] == reference.tokenizer(text)["input_ids"]
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, policy.model(ids).logits, atol=1e-5)


def test_cache_is_whole_or_absent(fresh_cache, monkeypatch, capsys):
    file = cache.store("kind", "key", {"a": np.arange(3)}, note=1)
    arrays, info = cache.load("kind", "key")
    assert arrays["a"].tolist() == [0, 1, 2] and info == {"note": 1}
    file.write_bytes(file.read_bytes()[:20])
    assert cache.load("kind", "key") is None and "is damaged" in capsys.readouterr().err
    assert not file.exists(), "removed"
    file = cache.store("kind", "key", {"a": np.arange(3)}, note=1)
    monkeypatch.setattr(sealed, "save_file", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    assert cache.store("kind", "other", {"a": np.arange(3)}) is None
    assert "SAFEALIGN_CACHE" in capsys.readouterr().err
    assert sorted(p.name for p in fresh_cache.rglob("*.*")) == ["key.safetensors"]


def test_digest_tells_apart_what_differs():
    values = [
        1,
        1.0,
        "1",
        True,
        None,
        [1],
        [[1]],
        ["1", "2"],
        ["12"],
        b"1",
        np.array([1]),
        np.array([1.0]),
        {"a": 1},
    ]
    assert len({cache.digest(v) for v in values}) == len(values)
    with pytest.raises(TypeError):
        cache.digest(object())


def test_logprobs_are_float32_or_better(reference):
    batch = LogProbs(reference.to("bfloat16"))
    assert batch.bf16 and next(batch.model.parameters()).dtype == torch.float32
