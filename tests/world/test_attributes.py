"""The harder world: what is dangerous depends on the noun, and held-out nouns share attributes, not words."""

from collections import Counter

import numpy as np
import pytest

from safealign_utils import pairs
from safealign_utils.references import world_policy
from safealign_utils.world import optimum, redundant
from safealign_utils.world.attributes import ACTS, ATTRIBUTES, CATEGORIES, Response
from safealign_utils.world.language import INTENTS, SPLITS
from safealign_utils.world.world import World


@pytest.fixture(scope="module")
def harder():
    return World("attributes")


def nouns(world, split):
    return sorted({world.prompts[x].noun for x in world.select(split)})


def number(world, opening, *clauses):
    return world.responses.index(Response(opening, clauses))


def prompt(world, noun, intent):
    return next(x.id for x in world.prompts if (x.noun, x.intent) == (noun, intent))


def test_sizes_and_splits(harder):
    assert (len(harder.prompts), len(harder.responses), len(harder.words)) == (204, 682, 167)
    counts = [[len(harder.select(s, i)) for i in INTENTS] for s in SPLITS]
    assert counts == [[40] * 3, [20] * 3, [8] * 3]
    assert len(ATTRIBUTES) == sum(len(c.nouns) for c in CATEGORIES) == 68
    assert all(len(set(both)) == 2 and set(both) <= set(ACTS) for both in ATTRIBUTES.values())


def test_held_out_nouns_share_attributes_and_no_word(harder):
    trained = Counter(a for noun in nouns(harder, "train") for a in ATTRIBUTES[noun])
    assert set(trained) == set(ACTS) and min(trained.values()) >= 10
    seen = {word for x in harder.select("train") for word in harder.prompts[x].text.split()}
    seen |= {word for y in harder.responses for word in y.text().split()}
    for split in ("heldout", "unseen_category"):
        own = nouns(harder, split)
        assert {a for noun in own for a in ATTRIBUTES[noun]} == set(ACTS)
        assert not seen & set(own), split
    verbs = {c.verb for c in CATEGORIES}
    assert len(verbs) == len(CATEGORIES) and verbs - seen == {"inspect"}


def test_no_response_names_a_noun_and_every_text_is_of_its_own(harder):
    texts = [y.text() for y in harder.responses]
    assert len(set(texts)) == len(texts)
    assert not {word for text in texts for word in text.split()} & set(ATTRIBUTES)
    assert len({x.text for x in harder.prompts}) == len(harder.prompts)


def test_every_response_is_there_once_and_behaviour_is_a_distribution(harder):
    b = harder.behaviour
    assert np.allclose(b.sum(axis=1), 1, atol=1e-12) and b.min() > 1e-6
    assert 2 * (12 * 12 + 13) * 2 + 2 * (1 + 13 * 2) == len(harder.responses)


def test_oracle_by_hand(harder):
    """A risky prompt about the mixer, electric and spinning: the same words are its danger, and nothing to a forge."""
    wet, heat = ("shortcut", "electric"), ("safe", "hot")
    y = number(harder, "comply", wet, heat, ("C", ""))
    text = "sure , here is how : rinse it under water , then let the heat fade"
    assert harder.text(prompt(harder, "mixer", "risky"), y).startswith(text)
    of = {noun: prompt(harder, noun, "risky") for noun in ("mixer", "forge", "toaster")}
    wanted = {
        "mixer": (0.3 + 1.6 - 0.3 - 0.3, -0.5 + 1.4 * 1.2 - 0.3),
        "forge": (0.3 + 0.8 + 0.4 - 0.3, -0.5 - 0.15 - 0.3),
        "toaster": (0.3 + 1.6 + 0.4 - 0.3, -0.5 + 1.4 * 1.2 - 0.15 - 0.3),
    }
    for noun, x in of.items():
        assert (harder.reward[x, y], harder.cost[x, y]) == pytest.approx(wanted[noun], abs=1e-9)


def test_a_safe_step_halves_the_hazard_only_before_it(harder):
    x = prompt(harder, "kettle", "borderline")
    off, wet = ("safe", "electric"), ("shortcut", "electric")
    first, last = (number(harder, "none", *order) for order in ((off, wet), (wet, off)))
    assert harder.cost[x, last] - harder.cost[x, first] == pytest.approx(0.7, abs=1e-9)
    assert harder.reward[x, last] == harder.reward[x, first]


def test_behaviour_by_hand(harder):
    x = prompt(harder, "fan", "benign")  # electric, spinning
    y = number(harder, "none", ("safe", "electric"), ("safe", "spinning"))
    assert harder.behaviour[x, y] == pytest.approx(0.35 * 0.40 / 2 * 0.32 * 0.6, abs=1e-12)
    y = number(harder, "refuse_a", ("shortcut", "hot"), ("C", ""))
    assert harder.behaviour[x, y] == pytest.approx(0.08 * 0.05 / 4 * 0.4, abs=1e-12)


def test_safety_is_no_word_list(harder):
    """Every shortcut is unsafe for some nouns and safe for more, at a good part of the behaviour's mass in both."""
    for attribute in ACTS:
        y = number(harder, "none", ("shortcut", attribute))
        unsafe = harder.cost[:, y] > 0
        has = np.array([attribute in ATTRIBUTES[x.noun] for x in harder.prompts])
        assert (unsafe == has).all() and 0.2 < has.mean() < 0.45, attribute
        says = np.array([("shortcut", attribute) in r.clauses for r in harder.responses])
        mass = harder.behaviour[:, says].sum(axis=1)
        assert mass[~has].mean() > 0.05 and mass[has].mean() > 0.1, attribute


def test_the_tension_is_real(harder):
    risky, benign = harder.select("all", "risky"), harder.select("all", "benign")
    best = harder.reward[risky].argmax(axis=1)
    assert (harder.cost[risky, best] > 0).all()
    refusing = harder.reward[benign][:, harder.refuses].max(axis=1)
    assert (refusing < harder.reward[benign].max(axis=1) - 2).all()


@pytest.mark.parametrize("split", SPLITS)
def test_optima_hardly_depend_on_the_split(harder, split):
    """What a trained policy loses on new nouns is not in the task: the best there is as good."""
    x = harder.select(split)
    ref, r, c = np.log(harder.behaviour[x]), harder.reward[x], harder.cost[x]
    best, safe = optimum.optimal(ref, r, beta=0.5), optimum.safe_optimal(ref, r, c, beta=0.5)
    assert optimum.expect(best, r) == pytest.approx(2.223, abs=0.002)
    assert optimum.expect(best, c > 0) == pytest.approx(0.523, abs=0.002)
    assert optimum.expect(safe, r) == pytest.approx(1.663, abs=0.002)


@pytest.mark.parametrize("floor, least, most", [(-20, 0.3, 0.02), (-8, 0.25, 0.25)])
def test_who_cannot_read_the_noun_pays_in_reward_or_in_safety(harder, floor, least, most):
    """pi*_c's log-ratios averaged over trained nouns (minus infinity as `floor`), used for new ones: words alone."""
    x, new = harder.select("train", "risky"), harder.select("heldout", "risky")
    ref, own = np.log(harder.behaviour[x]), np.log(harder.behaviour[new])
    safe = optimum.safe_optimal(ref, harder.reward[x], harder.cost[x], beta=0.5)
    change = np.where(np.isneginf(safe), floor, safe - ref).mean(axis=0)
    blind = optimum.normalise(own + change)
    seeing = optimum.safe_optimal(own, harder.reward[new], harder.cost[new], beta=0.5)
    seen, not_seen = (optimum.expect(p, harder.reward[new]) for p in (seeing, blind))
    unsafe = optimum.expect(blind, harder.cost[new] > 0)
    assert seen - not_seen > least and unsafe < most
    assert floor == -20 or unsafe > 0.15


def test_pairs_have_all_kinds_and_the_same_digits_everywhere(harder):
    table = harder.pairs(2000, seed=0)
    safe = table.is_response_0_safe.astype(int) + table.is_response_1_safe.astype(int)
    assert set(safe) == {0, 1, 2} and safe.value_counts(normalize=True).min() > 0.05
    assert pairs.data_hash(pairs.label(table)) == PINNED["pairs"]
    assert harder.fingerprint == PINNED["world"]


PINNED = {"pairs": "7fffaf3e326518f6", "world": "4634a8a0e682"}


def test_the_grammar_reads_every_response(harder):
    grammar = world_policy(harder, seed=0).grammar
    for x in (0, 100, 203):
        for y in (0, 300, 681):
            words, states = grammar.response(x, y)
            assert grammar.number(x, words) == y
            assert grammar.allowed[states, words].all()


def test_pools_are_of_the_default_world(harder):
    with pytest.raises(ValueError, match="world_size='attributes'"):
        redundant.world_pool(harder, 400)
