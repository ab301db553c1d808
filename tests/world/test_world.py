"""The world: grammar, oracle, data, and that no processor decides them."""

import subprocess
import sys

import numpy as np
import pytest

from safealign_utils import pairs
from safealign_utils.real import read_pairs
from safealign_utils.world.grammar import Grammar, build_trie
from safealign_utils.world.language import CATEGORIES, EOS
from safealign_utils.world.world import World


def test_sizes_and_splits(world):
    assert len(world.prompts) == 72 and len(world.responses) == 604
    assert [len(world.select(s)) for s in ("train", "heldout", "unseen_category", "all")] == [
        45,
        15,
        12,
        72,
    ]
    large = World("large")
    assert len(large.prompts) == 144 and len(large.responses) == 1266
    nouns = {world.prompts[i].noun for i in world.select("train")}
    assert not nouns & {world.prompts[i].noun for i in world.select("heldout")}
    with pytest.raises(ValueError, match="size='huge'"):
        World("huge")
    with pytest.raises(ValueError, match="split='test'"):
        world.select("test")


def test_a_held_out_noun_is_one_word_of_a_training_prompt(world):
    """What README and notebook 02 say of "held out": another word in the prompt, and hardly any new response."""

    def without_noun(split):
        prompts = [world.prompts[i] for i in world.select(split)]
        return {
            (x.category, " ".join("_" if word == x.noun else word for word in x.text.split()))
            for x in prompts
        }

    assert without_noun("heldout") < without_noun("train") and len(without_noun("heldout")) == 15
    held = world.select("heldout")
    said = [[world.text(x, y) for y in range(len(world.responses))] for x in held]
    assert not any(
        world.prompts[x].noun in text.split() for x, texts in zip(held, said) for text in texts
    )
    table = world.pairs(6000, seed=0)
    known = {*table.response_0, *table.response_1}
    mass = np.average(
        [[text in known for text in texts] for texts in said], weights=world.behaviour[held]
    )
    distinct = np.mean([text in known for text in {text for texts in said for text in texts}])
    assert (round(mass, 3), round(distinct, 3)) == (0.956, 0.895)


def test_every_response_is_a_text_of_its_own(world):
    for category in CATEGORIES:
        texts = [y.text(category) for y in world.responses]
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("size", ["default", "large"])
def test_behaviour_is_a_distribution_of_full_support(size):
    b = World(size).behaviour
    assert np.allclose(b.sum(axis=1), 1, atol=1e-12) and b.min() > 1e-6


def test_oracle_by_hand(world):
    """A risky garden prompt: comply (0.3), H1 (1.4), S2 (0.3), C (-0.3); c = -0.5 + 0.9 * 1.1 * 1.2 - 0.15 - 0.5."""
    x = next(
        p.id
        for p in world.prompts
        if (p.category, p.noun, p.intent) == ("garden", "mower", "risky")
    )
    y = next(
        i
        for i, r in enumerate(world.responses)
        if (r.opening, r.kinds, r.closing) == ("comply", ("H1", "S2", "C"), 0)
    )
    assert world.text(x, y).startswith(
        "sure , here is how : ignore the safety switch , then clear the stones away"
    )
    assert world.reward[x, y] == pytest.approx(0.3 + 1.4 + 0.3 - 0.3, abs=1e-9)
    assert world.cost[x, y] == pytest.approx(-0.5 + 0.9 * 1.1 * 1.2 - 0.15 - 0.5, abs=1e-9)


def test_the_tension_is_real(world):
    """On risky prompts the most helpful response is unsafe, on benign ones refusing costs."""
    risky, benign = world.select("all", "risky"), world.select("all", "benign")
    best = world.reward[risky].argmax(axis=1)
    assert (world.cost[risky, best] > 0).all()
    assert (
        world.reward[benign][:, world.refuses].max(axis=1) < world.reward[benign].max(axis=1) - 2
    ).all()
    hazard = np.array(["H1" in y.kinds or "H2" in y.kinds for y in world.responses])
    assert (world.cost[:, hazard] <= 0).any(), (
        "a caution makes some hazards safe: safety is no word list"
    )


def test_pairs_have_the_pku_columns_and_all_kinds(world):
    table = world.pairs(2000, seed=0)
    assert {*read_pairs.TEXT, *pairs.SAFE, *pairs.LABELS.values()} <= set(table.columns)
    safe = table.is_response_0_safe.astype(int) + table.is_response_1_safe.astype(int)
    assert set(safe) == {0, 1, 2} and safe.value_counts(normalize=True).min() > 0.1
    mixed = table[safe == 1]
    assert (mixed.safer_response_id == (~mixed.is_response_0_safe).astype(int)).all()
    assert ((table.cost_0 <= 0) == table.is_response_0_safe).all()
    assert (table.response_0 != table.response_1).all()


def test_labels_follow_bradley_terry(world):
    table = world.pairs(6000, seed=1)
    p = 1 / (1 + np.exp(table.reward_1 - table.reward_0))
    won = table.better_response_id == 0
    assert abs((won - p).mean()) < 4 * np.sqrt((p * (1 - p)).mean() / len(table))
    for low in (0.1, 0.4, 0.7):
        some = (p > low) & (p <= low + 0.2)
        assert abs(won[some].mean() - p[some].mean()) < 0.05


def test_label_noise(world):
    clean, noisy = world.pairs(3000, seed=0), world.pairs(3000, seed=0, label_noise=0.3)
    assert (clean.response_0 == noisy.response_0).all()
    assert abs((clean.better_response_id != noisy.better_response_id).mean() - 0.3) < 0.03
    assert (clean.is_response_0_safe == noisy.is_response_0_safe).all()
    with pytest.raises(ValueError, match="label_noise=1.5"):
        world.pairs(10, label_noise=1.5)
    with pytest.raises(ValueError, match="n=0"):
        world.pairs(0)


def test_first_rows_do_not_depend_on_n(world):
    assert world.pairs(300, seed=4).head(50).equals(world.pairs(50, seed=4))
    assert not world.pairs(50, seed=5).equals(world.pairs(50, seed=4))


def test_data_hash_is_pinned(world):
    """The same on every machine: this very value."""
    assert pairs.data_hash(pairs.label(world.pairs(500, seed=0))) == PINNED["pairs"]
    assert world.fingerprint == PINNED["world"]


PINNED = {"pairs": "0a57a0257f864699", "world": "28d84a27b666"}


def test_trie_of_a_tiny_language():
    paths, parent = build_trie([["a", "b"], ["a", "c", "d"], ["e"]])
    assert parent.tolist() == [-1, 0, 0, 2, -1]
    assert paths.tolist() == [[0, 1, -1], [0, 2, 3], [4, -1, -1]]


def test_grammar_allows_exactly_what_the_texts_say(world, reference):
    grammar, ids = reference.grammar, reference.tokenizer.get_vocab()
    category = grammar.category[0]
    texts = [world.text(0, y).split() + [EOS] for y in range(len(world.responses))]
    rng = np.random.default_rng(0)
    for y in rng.choice(len(texts), 40, replace=False):
        words, states = grammar.response(0, y)
        assert words.tolist() == [ids[w] for w in texts[y]]
        assert words.tolist() == reference.tokenizer(world.text(0, y))["input_ids"] + [ids[EOS]]
        for t, state in enumerate(states):
            nexts = {s[t] for s in texts if s[:t] == texts[y][:t] and len(s) > t}
            assert set(np.flatnonzero(grammar.allowed[state])) == {ids[w] for w in nexts}
    assert category == 0


def test_forest_covers_every_node_once(reference):
    grammar = reference.grammar
    for group in (7, 64, 604):
        forest = grammar.forest(group)
        assert sorted(forest.target) == list(range(len(grammar.parent)))
        at = np.where(forest.place < 0, -1, forest.node[forest.row, forest.place])
        assert (at == grammar.parent[forest.target]).all()


def test_import_is_light():
    """Importing the package brings in neither torch nor transformers."""
    code = (
        "import sys, safealign_utils; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "[]"
    )


def test_world_needs_no_torch():
    code = "import sys, safealign_utils.world.world, safealign_utils.world.optimum; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "False"
    )


def test_grammar_refuses_categories_of_different_shape(world, monkeypatch):
    import dataclasses

    crooked = dataclasses.replace(
        CATEGORIES[0], clauses={**CATEGORIES[0].clauses, "S1": ("unplug", "pull it out now")}
    )
    monkeypatch.setattr(world, "categories", (crooked, *CATEGORIES[1:]))
    ids = {
        w: i
        for i, w in enumerate(["<pad>", "<unk>", EOS, *world.words, "it", "pull", "out", "now"])
    }
    with pytest.raises(ValueError, match="differ in shape"):
        Grammar(world, ids)
