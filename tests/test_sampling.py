"""Sampling from a policy against its enumerated distribution."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from safealign_utils import evaluate
from safealign_utils.policy import Policy
from safealign_utils.sampling import draw, sample
from safealign_utils.world import optimum as o


def encode(policy, prompt):
    return np.array(policy.tokenizer(policy.grammar.world.prompts[prompt].text)["input_ids"])


def drawn(policy, prompts, u, **options):
    return sample(
        policy,
        [encode(policy, x) for x in prompts],
        u,
        categories=policy.grammar.category[prompts],
        **options,
    )


# ---------------------------------------------------------------- sampling


def uniforms(n, max_tokens, *, seed):
    return np.random.default_rng(seed).random((n, max_tokens))


def test_number_inverts_response(inside, world):
    g = np.random.default_rng(0)
    for x, y in zip(
        g.integers(len(world.prompts), size=50), g.integers(len(world.responses), size=50)
    ):
        assert inside.grammar.number(x, inside.grammar.response(x, y)[0]) == y
    with pytest.raises(KeyError):
        inside.grammar.number(0, inside.grammar.response(0, 3)[0][:-1])


def test_next_state_walks_every_response_and_refuses_what_is_not_allowed(inside):
    grammar = inside.grammar
    for x, y in ((0, 0), (30, 200), (71, 603)):
        ids, states = grammar.response(x, y)
        state = states[:1]
        for token, after in zip(ids[:-1], states[1:]):
            state = grammar.next_state(state, np.array([token]))
            assert state.tolist() == [after]
        assert grammar.next_state(state, np.array([-1])).tolist() == state.tolist()
    first = grammar.response(0, 0)[1][:1]
    wrong = np.flatnonzero(~grammar.allowed[first[0]])
    for token in wrong[[0, len(wrong) // 2, -1]]:
        with pytest.raises(ValueError, match="does not allow"):
            grammar.next_state(first, np.array([token]))


def test_a_constrained_policy_stays_in_the_grammar(inside, world):
    everyone = list(range(0, 72, 4)) * 3
    eos = inside.tokenizer.eos_token_id
    for x, y in zip(
        everyone, drawn(inside, everyone, uniforms(len(everyone), 40, seed=0), temperature=3.0)
    ):
        assert y[-1] == eos and (y[:-1] != eos).all()
        words = " ".join(inside.tokenizer.convert_ids_to_tokens(y[:-1].tolist()))
        assert words == world.text(x, inside.grammar.number(x, y))


def test_frequencies_are_those_of_the_enumerated_distribution(inside, prompts):
    n, x = 4000, prompts[2]
    numbers = [inside.grammar.number(x, y) for y in drawn(inside, [x] * n, uniforms(n, 40, seed=0))]
    seen = np.bincount(numbers, minlength=604)

    def p_value(logp):
        expected = n * np.exp(logp)
        rare = expected < 5
        e, f = (
            np.append(expected[~rare], expected[rare].sum()),
            np.append(seen[~rare], seen[rare].sum()),
        )
        return chi2.sf(((f - e) ** 2 / e).sum(), len(e) - 1)

    own, benign = evaluate.exact(inside, [x, prompts[0]]).logp
    assert p_value(own) > 0.01 and p_value(benign) < 1e-9
    assert p_value(o.optimal(own[None], inside.grammar.world.cost[[x]], beta=4.0)[0]) < 1e-3, (
        "it sees a small tilt"
    )


def test_padding_on_the_left_changes_nothing(inside, world):
    length = [len(encode(inside, i)) for i in range(72)]
    batch = [int(i) for i in np.argsort(length)[::6]]
    assert length[batch[0]] < length[batch[5]] < length[batch[-1]]
    u = uniforms(len(batch), 40, seed=4)
    for i, together in enumerate(drawn(inside, batch, u)):
        assert together.tolist() == drawn(inside, [batch[i]], u[i : i + 1])[0].tolist()


def test_padding_on_the_left_changes_nothing_with_absolute_positions(inside):
    """GPT-2 without a grammar, prompts of unequal length: the tokens of plain forward passes, one prompt at a time."""
    import transformers as t

    shape = dict(vocab_size=33, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = t.GPT2LMHeadModel(t.GPT2Config(**shape)).double().eval()
    g, u = np.random.default_rng(0), uniforms(4, 12, seed=6)
    prompts = [g.integers(3, 33, n) for n in (5, 1, 9, 3)]
    got = sample(Policy(model, inside.tokenizer), prompts, u)
    for prompt, numbers, y in zip(prompts, u, got):
        said = []
        for number in numbers:
            with torch.no_grad():
                p = model(torch.tensor([[*prompt, *said]])).logits[0, -1].softmax(-1).numpy()
            said.append(int(np.argmax(p.cumsum() > number)))
            if said[-1] == inside.tokenizer.eos_token_id:
                break
        assert said == y.tolist()
    assert len({y.tobytes() for y in got}) == 4 and max(map(len, got)) == 12


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_cache_of_keys_and_values_changes_nothing(inside, world, prompts, temperature):
    """The same tokens from plain forward passes, with the next words looked up in the list of all responses."""
    u = uniforms(3, 40, seed=5)
    got = drawn(inside, prompts, u, temperature=temperature)
    token_id = inside.tokenizer.get_vocab()
    for x, numbers, y in zip(prompts, u, got):
        all_ids = [
            [token_id[w] for w in world.text(x, i).split()] + [token_id["</s>"]] for i in range(604)
        ]
        prompt, said = encode(inside, x).tolist(), []
        while not said or said[-1] != token_id["</s>"]:
            may = {ids[len(said)] for ids in all_ids if ids[: len(said)] == said}
            with torch.no_grad():
                logits = (
                    inside.model(torch.tensor([prompt + said])).logits[0, -1].numpy() / temperature
                )
            weight = np.array([np.exp(v) if i in may else 0.0 for i, v in enumerate(logits)])
            said.append(int(np.argmax(weight.cumsum() / weight.sum() > numbers[len(said)])))
        assert said == y.tolist()


def test_a_low_temperature_is_greedy(inside, prompts):
    one, two = (drawn(inside, prompts, uniforms(3, 40, seed=s), temperature=1e-4) for s in (0, 1))
    assert all(a.tolist() == b.tolist() for a, b in zip(one, two))
    assert [a.tolist() for a in drawn(inside, prompts, uniforms(3, 40, seed=0))] != [
        a.tolist() for a in one
    ]
    greedy = drawn(inside, prompts, uniforms(3, 40, seed=2), temperature=0)
    assert [a.tolist() for a in greedy] == [a.tolist() for a in one]


def test_further_ends_of_a_response(reference, world, prompts):
    """A response ends at the first of the given ids, keeps it in its ids and leaves it out of its text."""
    texts, u = [world.prompts[x].text for x in prompts], uniforms(3, 40, seed=0)
    plain = dataclasses.replace(reference, grammar=None)
    whole = draw(plain, texts, u)
    comma = int(whole.responses[0][3])
    cut = draw(plain, texts, u, ends=(comma,))
    for long, short, text in zip(whole.responses, cut.responses, cut.texts):
        places = np.flatnonzero(long == comma)
        assert short.tolist() == (long[: places[0] + 1] if len(places) else long).tolist()
        assert text.split() == plain.tokenizer.convert_ids_to_tokens(short[:-1].tolist())


def test_a_prompt_without_room_is_refused(inside, prompts):
    with pytest.raises(ValueError, match="exceeds the model's 512 positions"):
        drawn(inside, prompts, uniforms(3, 508, seed=0))


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_bad_temperatures_are_refused(inside, prompts, temperature):
    with pytest.raises(ValueError, match="temperature="):
        drawn(inside, prompts, uniforms(3, 40, seed=0), temperature=temperature)


def test_a_response_ends_where_the_numbers_end(inside, prompts):
    whole, cut = (drawn(inside, prompts, uniforms(3, 40, seed=0)[:, :t]) for t in (40, 3))
    assert all(len(y) > 3 for y in whole) and [y.tolist() for y in cut] == [
        y[:3].tolist() for y in whole
    ]


def test_drawn_texts_and_masks(inside, reference, world, prompts):
    texts = [world.prompts[x].text for x in prompts * 10]
    out = draw(inside, texts, uniforms(30, 40, seed=1))
    for x, text, ids, allowed in zip(prompts * 10, out.texts, out.responses, out.allowed):
        assert text == world.text(x, inside.grammar.number(x, ids))
        assert (
            allowed.shape == (len(ids), len(inside.tokenizer))
            and allowed[range(len(ids)), ids].all()
        )
    plain = draw(reference, texts, uniforms(30, 40, seed=1))
    assert plain.allowed is None and [x.tolist() for x in plain.prompts] == [
        x.tolist() for x in out.prompts
    ]
    known = 0
    for x, text, ids in zip(prompts * 10, plain.texts, plain.responses):
        try:
            known += text == world.text(x, reference.grammar.number(x, ids))
        except KeyError:  # a leak
            continue
    assert known >= 25, "the reference leaks little"
