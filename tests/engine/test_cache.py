"""The keys of the cache: whatever decides a result changes its key, and nothing else does.

CACHED lists every function whose results are kept, with a change of each of its inputs. An argument that is in
neither list fails the test: a new one must say whether it decides the result.
"""

import inspect
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch

from safealign_utils import evaluate, logprobs, pairs, sampling, train
from safealign_utils.engine import cache
from safealign_utils.engine.content import Unknown, content
from safealign_utils.methods import dog, ppo
from safealign_utils.methods.selective import Signed, TokenTable, TopTokens
from safealign_utils.real import scorer_training
from safealign_utils.real.scorer import Scorer
from safealign_utils.references import world_policy

LOOP = {"accumulate": 2, "checkpointing": True, "by_prompt": True, "save_every": 3}
STEPS = dict(steps=2, batch_size=4, learning_rate=1e-3, seed=0)
OTHER_STEPS = dict(steps=3, batch_size=3, learning_rate=2e-3, seed=1)


def lead(z, beta):
    return torch.nn.functional.softplus(-z)


def follow(z, beta):
    return torch.nn.functional.softplus(-2 * z)


def moved(policy, **changes):
    """A copy with other weights, or read in another way."""
    out = policy.copy(**changes)
    if not changes:
        with torch.no_grad():
            next(out.model.parameters()).add_(1e-6)
    return out


def swap(tokens):
    """The same pairs with the other response as winner."""
    states = dict(states_w=tokens.states_l, states_l=tokens.states_w)
    return replace(tokens, chosen=tokens.rejected, rejected=tokens.chosen, **states)


def every_second(tokens):
    """Half of the pairs."""
    lists = [
        f.name
        for f in fields(tokens)
        if isinstance(getattr(tokens, f.name), (list, tuple, np.ndarray))
    ]
    return replace(tokens, **{name: getattr(tokens, name)[::2] for name in lists})


def other_tokens(tokens):
    swapped = swap(tokens)
    fewer = pairs.TokenPairs(
        *[getattr(tokens, f)[:-1] for f in ("prompts", "chosen", "rejected", "p", "margin")]
    )
    return [
        swapped,
        fewer,
        replace(tokens, p=tokens.p * 0.9),
        replace(tokens, margin=tokens.margin + 1.0),
    ]


def variants(base, **changes):
    """(name, arguments) for every change of one argument; several changes of one as a list."""
    for name, values in changes.items():
        for value in values if isinstance(values, list) else [values]:
            yield name, {**base, name: value}


def cached(world, tokens, reference):
    """{function: (kind of entry, base arguments, changes, arguments that decide nothing)}."""
    table = pairs.label(world.pairs(8, seed=0))
    ids = [np.array(x) for x in tokens.prompts[:4]]
    said = [np.array(y) for y in tokens.chosen[:4]]
    policies = [moved(reference), moved(reference, constrained=True), moved(reference, bf16=True)]
    per_token = TokenTable(
        [np.ones(len(y)) for y in tokens.chosen], [np.ones(len(y)) for y in tokens.rejected]
    )
    levers = [TopTokens(0.4), TopTokens(0.5), TopTokens(0.4, Signed(per_token))]
    preference = dict(reference=reference, tokens=tokens, beta=0.5, **STEPS)
    scorer = dict(reference=reference, table=table, max_length=64, **STEPS)
    other_table = [pairs.label(world.pairs(8, seed=1)), table.iloc[:-1]]
    prompts = [world.prompts[i].text for i in (0, 1)]
    drawn = dict(policy=moved(reference, constrained=True), prompts=prompts, max_tokens=48)
    oracle = {name: world.scorer(name) for name in ("reward", "cost")}
    lagrangian = dict(
        reference=moved(reference, constrained=True),
        prompts=[0, 1],
        **oracle,
        cost_limit=0.0,
        iterations=1,
        learning_rate=1e-3,
        seed=0,
    )
    return {
        train.fine_tune: (
            "policy",
            dict(policy=reference, prompts=ids, responses=said, **STEPS),
            dict(
                policy=policies,
                prompts=[ids[::-1]],
                responses=[said[::-1]],
                **OTHER_STEPS,
                lora=2,
            ),
            ["use_cache", "training"],
        ),
        train.align: (
            "policy",
            preference,
            dict(
                reference=policies,
                tokens=other_tokens(tokens),
                beta=0.6,
                start=moved(reference),
                leak_weight=0.1,
                token_lever=levers,
                link=[lead, follow],
                **OTHER_STEPS,
                lora=2,
            ),
            ["use_cache", "training"],
        ),
        scorer_training.train_reward: (
            "policy",
            scorer,
            dict(reference=policies[0], table=other_table, max_length=[], **OTHER_STEPS, lora=2),
            ["training"],
        ),
        scorer_training.train_cost: (
            "policy",
            scorer,
            dict(
                reference=policies[0],
                table=other_table,
                max_length=[],
                loss=["equal_status", "safe_rlhf"],
                **OTHER_STEPS,
                lora=2,
            ),
            ["training"],
        ),
        ppo.ppo_lagrangian: (
            "policy",
            lagrangian,
            dict(
                reference=moved(lagrangian["reference"]),
                prompts=[[0, 2]],
                reward=oracle["cost"],
                cost=oracle["reward"],
                cost_limit=0.1,
                iterations=2,
                learning_rate=2e-3,
                seed=1,
                beta=0.5,
                kl_coeff=0.02,
            ),
            ["setting"],
        ),
        logprobs.reference_logprobs: (
            "reference",
            dict(policy=reference, tokens=replace(tokens, states_w=None, states_l=None)),
            dict(policy=policies[:1] + policies[2:], tokens=other_tokens(tokens)[1]),
            ["batch_size"],
        ),
        evaluate.exact: (
            "trie",
            dict(policy=reference, prompts=[0]),
            dict(policy=policies, prompts=[[1]]),
            [],
        ),
        sampling.generate: (
            "answers",
            drawn,
            dict(
                policy=moved(drawn["policy"]),
                prompts=[[prompts[0], world.prompts[2].text]],
                max_tokens=49,
                temperature=0.5,
                seed=1,
                keys=[["a", "b"]],
                batch_size=1,
            ),
            [],
        ),
        dog.directions: (
            "directions",
            dict(policy=reference, tokens=tokens),
            dict(
                policy=policies,
                tokens=other_tokens(tokens)[:2],
                layer=1,
                pooling="last",
            ),
            ["normalise"],
        ),
    }


class Asked(Exception):
    """The cache was asked: nothing is computed."""


@pytest.fixture
def key_of(monkeypatch, fresh_cache):
    """A function (function, kind, arguments) -> what the cache is asked for."""
    found = []
    monkeypatch.setattr(scorer_training, "FEWEST", 1)  # a small table has a unit, too

    def ask(function, kind, arguments):
        def load(asked_kind, key):
            if asked_kind.partition("/")[0] == kind:
                found.append((asked_kind, key))
                raise Asked

        def known(folder):
            if kind == "reference":
                found.append((folder, *sorted(set(logprobs.Responses(arguments["tokens"]).names))))
                raise Asked
            return {}

        monkeypatch.setattr(cache, "load", load)
        monkeypatch.setattr(train, "reference_logprobs", lambda *given: None)  # read before the key
        monkeypatch.setattr(logprobs, "_known", known)
        with pytest.raises(Asked):
            function(**arguments)
        return found[-1]

    return ask


NAMES = [
    "fine_tune",
    "align",
    "train_reward",
    "train_cost",
    "ppo_lagrangian",
    "reference_logprobs",
    "exact",
    "generate",
    "directions",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_input_is_part_of_the_key(name, world, tokens, reference, key_of):
    every = {f.__name__: (f, *rest) for f, rest in cached(world, tokens, reference).items()}
    assert list(every) == NAMES
    function, kind, base, changes, decide_nothing = every[name]
    parameters = set(inspect.signature(function).parameters)
    if "training" in parameters:  # the fields of Training; those of LOOP have a test of their own
        parameters |= {f.name for f in fields(train.Training)} - {*LOOP}
    if "setting" in parameters:
        parameters |= {f.name for f in fields(ppo.Setting)}
    assert parameters == {*changes, *decide_nothing}
    first = key_of(function, kind, base)
    assert first == key_of(function, kind, base), "the same question has the same key"
    keys = [first]
    for argument, arguments in variants(base, **changes):
        keys.append(key_of(function, kind, arguments))
        assert keys[-1] != first, f"{argument} is no part of the key"
    assert len(set(keys)) == len(keys), "two changes share a key"


@pytest.mark.parametrize("name, changed", LOOP.items())
def test_options_of_the_loop_are_part_of_the_key(name, changed, tokens, reference, key_of):
    base = dict(reference=reference, tokens=tokens, beta=0.5, **STEPS)
    assert key_of(train.align, "policy", base) != key_of(
        train.align, "policy", {**base, name: changed}
    )


# ---------------------------------------------------------------- what every key knows


@pytest.fixture
def key(reference):
    """Asks for a key of a policy: what changes it?"""
    return lambda: cache.key("kind", policy=reference)


CONSTANTS = [
    "train.CLIP",
    "train.BETAS",
    "train.WARM_UP",
    "references.SFT",
    "methods.ppo.GAE",
    "methods.ppo.SAMPLES",
    "methods.dog.BATCH",
    "methods.baselines.SBA",
    "methods.selective.DIGITS",
    "world.language.REWARD",
]


@pytest.mark.parametrize("constant", CONSTANTS)
def test_a_constant_changed_at_run_time_changes_every_key(constant, key, monkeypatch):
    import safealign_utils.methods.baselines  # noqa: F401

    before = key()
    place, _, name = f"safealign_utils.{constant}".rpartition(".")
    monkeypatch.setattr(f"{place}.{name}", 17)
    assert key() != before
    monkeypatch.undo()
    assert key() == before


def test_a_constant_changed_in_place_is_noticed(key, monkeypatch):
    from safealign_utils.references import SFT

    before = key()
    monkeypatch.setitem(SFT, "steps", 17)
    assert key() != before


def test_source_versions_and_settings_of_torch_change_every_key(key, monkeypatch):
    keys = {key()}
    monkeypatch.setattr(cache, "library_versions", lambda: {"torch": "another"})
    keys.add(key())
    monkeypatch.setattr(cache, "FIRST", "another source")
    keys.add(key())
    torch.set_default_dtype(torch.float64)
    keys.add(key())
    torch.set_default_dtype(torch.float32)
    assert len(keys) == 4


def test_science_is_every_file_but_what_runs_notebooks_and_draws():
    files = {name for name, *_ in cache._stats(cache._is_science)}
    assert {
        "tokens.py",
        "policy.py",
        "engine/distributed.py",
        "engine/content.py",
        "methods/ppo.py",
        "real/scorer_checkpoints.py",
    } <= files
    left_out = {str(f.relative_to(cache.PACKAGE)) for f in cache.PACKAGE.rglob("*.py")} - files
    assert {name.split("/")[0] for name in left_out} == {"figures", "study", "runs"}


@pytest.mark.parametrize("change", ["weights", "data", "attention", "grammar", "hook", "scaling"])
def test_a_policy_changed_in_place_has_another_key(change, world):
    policy = world_policy(world, seed=0)
    before = cache.key("kind", policy=policy)
    assert cache.key("kind", policy=policy) == before == cache.key("kind", policy=policy.copy())
    with torch.no_grad():
        if change == "weights":
            next(policy.model.parameters()).add_(1e-6)
        elif change == "data":
            next(policy.model.parameters()).data += 1e-6
        elif change == "attention":
            policy.model.set_attn_implementation("eager")
        elif change == "grammar":
            policy.grammar.allowed[0, 0] ^= True
        elif change == "hook":
            policy.model.register_forward_hook(lambda net, given, out: out)
        else:
            policy.model.model.layers[0].self_attn.scaling *= 2
    assert cache.key("kind", policy=policy) != before


def test_a_large_network_changed_in_place_is_noticed(monkeypatch, world):
    """Large weights are not read twice; their version, place and sum tell."""
    monkeypatch.setattr("safealign_utils.policy.LARGE", 1)
    policy = world_policy(world, seed=0)
    hashes = [policy.hash, policy.hash]
    with torch.no_grad():
        next(policy.model.parameters()).add_(1e-3)
    hashes.append(policy.hash)
    next(policy.model.parameters()).data += 1e-3
    hashes.append(policy.hash)
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


def test_what_is_trained_is_part_of_the_key_and_frozen_weights_stay(tokens, reference, fresh_cache):
    """The frozen weights of a policy lie in the caller's memory: nothing is ever loaded into them."""
    setting = dict(beta=0.5, **STEPS)
    train.align(reference, tokens, **setting)
    frozen = reference.copy()
    embedding = frozen.model.get_input_embeddings().weight
    embedding.requires_grad_(False)
    before = embedding.detach().clone()
    run = train.align(frozen, tokens, **setting)
    assert not run.cached and torch.equal(embedding, before)
    again = train.align(frozen, tokens, **setting)
    assert again.cached and torch.equal(again.policy.model.get_input_embeddings().weight, before)


# ---------------------------------------------------------------- what a user writes


FACTOR = 1.0


def scaled(z, beta):
    return FACTOR * lead(z, beta)


def link_of(factor):
    return lambda z, beta: factor * lead(z, beta)


@dataclass(frozen=True)
class Weigh:
    weight: np.ndarray
    scale: float = 1.0

    def __call__(self, logratio_w, logratio_l, mask_w, mask_l, rows):
        k = torch.as_tensor(self.weight[rows])[:, None]
        return k * mask_w, self.scale * mask_l


class Base:
    share = 0.5

    def __call__(self, z, beta):
        return self.share * z


class Derived(Base):
    pass


def test_arrays_fields_closures_defaults_globals_and_bases_are_content(monkeypatch):
    many = np.ones(5000)
    nearly = many.copy()
    nearly[2500] = 0.5
    kinds = [
        Weigh(many),
        Weigh(nearly),
        Weigh(many, 2.0),
        link_of(1.0),
        link_of(2.0),
        scaled,
        Derived(),
        Base(),
    ]
    hashes = [content(x) for x in kinds]
    assert len(set(hashes)) == len(kinds)
    assert hashes[:1] == [content(Weigh(np.ones(5000)))] and hashes[3] == content(link_of(1.0))
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    assert content(scaled) != hashes[5], "a global that a function reads"
    monkeypatch.setattr(Base, "share", 0.6)
    assert content(Derived()) != hashes[6], "a base class"
    monkeypatch.setattr(Base, "__call__", lambda self, z, beta: 0.6 * z)
    assert content(Derived()) != hashes[6]


def test_two_classes_of_one_name_are_told_apart_by_their_source():
    def cell(version):
        @dataclass(frozen=True)
        class Lever:
            share: float

            def __call__(self, *given):
                return given[0] * self.share if version == 1 else given[1] * self.share

        return Lever(0.1)

    assert content(cell(1)) == content(cell(1)) != content(cell(2))
    assert repr(cell(1)) == repr(cell(2))


class Silent:
    """Holds what cannot be known."""

    def __init__(self):
        self.inner = iter([1])


@pytest.mark.parametrize(
    "thing, said",
    [
        (eval("lambda z, beta: z"), "write it with `def`"),
        (Silent(), "cannot be known"),
        (np.nditer(np.ones(3)), "cannot be known"),
    ],
)
def test_what_has_no_content_is_refused_with_the_fix(thing, said):
    with pytest.raises(Unknown, match=said) as error:
        content(thing, "link")
    assert str(error.value).startswith("link") and "use_cache=False" in str(error.value)


def test_a_link_from_nowhere_is_refused_before_training_and_taken_without_a_cache(
    tokens, reference
):
    link = eval("lambda z, beta: z.neg()")
    with pytest.raises(ValueError, match="link"):
        train.align(reference, tokens, beta=0.5, link=link, **STEPS)
    assert not train.align(reference, tokens, beta=0.5, link=link, use_cache=False, **STEPS).cached


def test_a_cycle_ends():
    ring = [1]
    ring.append(ring)
    assert content(ring) == content(ring)


def test_a_scorer_of_the_users_is_part_of_the_key_of_ppo(world, reference, key_of):
    base = dict(
        reference=reference.copy(constrained=True),
        prompts=[0],
        reward=world.scorer("reward"),
        cost=world.scorer("cost"),
        cost_limit=0.0,
        iterations=1,
        learning_rate=1e-3,
        seed=0,
    )

    def reward(factor):
        return lambda prompts, responses: np.full(len(prompts), factor)

    keys = {key_of(ppo.ppo_lagrangian, "policy", {**base, "reward": reward(f)}) for f in (0.0, 1.0)}
    assert len(keys) == 2


def test_a_scorer_whose_weights_change_has_another_key():
    head = torch.nn.Linear(1, 1)
    scorer = Scorer(
        "mine", "reward", lambda: dict(head.state_dict()), lambda x, y: [], lambda rows: rows
    )
    before = scorer.hash
    assert before == scorer.hash
    with torch.no_grad():
        head.weight.add_(1.0)
    assert scorer.hash != before


# ---------------------------------------------------------------- one table of log pi_ref


@pytest.mark.parametrize("where", ["world", "text"])
def test_relabelled_and_chosen_pairs_find_every_response(
    where, tokens, reference, fresh_cache, monkeypatch
):
    """A log-prob belongs to a response: other winners, another order and fewer pairs compute nothing."""
    if where == "text":
        tokens = replace(tokens, states_w=None, states_l=None)
    table = logprobs.reference_logprobs(reference, tokens)
    monkeypatch.setattr(logprobs, "_compute", None)
    monkeypatch.setattr(logprobs, "token_logps", None)
    other = logprobs.reference_logprobs(reference, swap(tokens))
    assert all(np.array_equal(a, b) for a, b in zip(table.chosen, other.rejected))
    half = every_second(tokens)
    few = logprobs.reference_logprobs(reference, half)
    assert all(np.array_equal(a, b) for a, b in zip(table.rejected[::2], few.rejected))


def test_a_number_of_the_world_does_not_depend_on_what_was_asked_before(
    tokens, reference, fresh_cache, monkeypatch
):
    """Runs that share a cache have the bits of runs that do not, whichever comes first."""
    rough = reference.to("float32")
    half = every_second(tokens)
    first = logprobs.reference_logprobs(rough, half)
    logprobs.reference_logprobs(rough, tokens)
    monkeypatch.setenv("SAFEALIGN_CACHE", str(fresh_cache / "another"))
    whole = logprobs.reference_logprobs(rough, tokens)
    assert all(np.array_equal(a, b) for a, b in zip(first.chosen, whole.chosen[::2]))


def test_both_ways_of_reading_agree(tokens, reference, fresh_cache):
    tries = logprobs.reference_logprobs(reference, tokens)
    rows = logprobs.reference_logprobs(reference, replace(tokens, states_w=None, states_l=None))
    assert (
        max(
            np.abs(a - b).max()
            for a, b in zip(tries.chosen + tries.rejected, rows.chosen + rows.rejected)
        )
        < 1e-10
    )


def test_in_bfloat16_the_first_loss_is_ln_2(tokens, reference):
    """The reference is read in the policy's own batch there: another batch shape moves a response."""
    rough = reference.to("bfloat16")
    for lora in (0, 2):
        run = train.align(
            rough,
            tokens,
            beta=0.5,
            lora=lora,
            use_cache=False,
            **STEPS | {"batch_size": 7, "seed": 3},
        )
        assert abs(run.log.loss[0] - np.log(2)) < 1e-5
