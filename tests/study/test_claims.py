"""The claims ledger: what it holds, how it judges, and that verdicts turn when a method is broken on purpose."""

import ast
import copy
import json
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT
from scipy import stats

from safealign_utils import evaluate, intervals, pairs, references, train
from safealign_utils.methods import cdpo, safedpo, selective
from safealign_utils.study import claims
from safealign_utils.world import optimum, tabular

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
LEDGER = claims.ledger()
HERE = {id: c for id, c in LEDGER.items() if c.scope != "only at scale"}
WHOLE = yaml.safe_load(claims.LEDGER.read_text(encoding="utf-8"))[0]


def code(path):
    return [
        c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"
    ]


def judged_in(path):
    """Patterns of the ids that a notebook's cells judge: an f-string's braces stand for any name."""
    for node in (n for c in code(path) for n in ast.walk(ast.parse("".join(c["source"])))):
        named = (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", "")) == "claim"
        )
        if named and isinstance(node.args[0], (ast.Constant, ast.JoinedStr)):
            parts = getattr(node.args[0], "values", [node.args[0]])
            yield "".join(
                re.escape(p.value) if isinstance(p, ast.Constant) else "[a-z0-9_]+" for p in parts
            )
        elif named:  # a name that runs over ids, which stand in the notebook
            source = "".join("".join(c["source"]) for c in code(path))
            yield from (re.escape(id) for id in LEDGER if f'"{id}"' in source)


def printed_in(path):
    """(verdict, id, what stands below it) of every claim in a notebook's committed outputs."""
    text = "".join("".join(o.get("text", "")) for c in code(path) for o in c["outputs"])
    words = "|".join(
        v.replace("_", " ") for v in ("holds", "does_not_hold", "undecided", "needs_scale")
    )
    return re.findall(rf"^\[({words})\] ([a-z0-9_.]+)(.*\n(?:    .*\n)+)", text, flags=re.M)


# ---------------------------------------------------------------- what the ledger holds


def test_the_ledger_speaks_to_five_papers_and_the_kit():
    assert len(LEDGER) >= 30
    for paper in ("2305.18290", "2505.20065", "2403.02475", "2507.07725", "2606.07678", "kit"):
        assert sum(paper in c.paper for c in LEDGER.values()) >= 2, paper
    assert {c.scope for c in LEDGER.values()} == set(claims.SCOPES)
    assert {c.kind for c in LEDGER.values()} == set(claims.KINDS)
    assert claims.LEDGER.read_text("utf-8").count("\n  kind: ") == len(LEDGER), "each says its kind"
    for c in LEDGER.values():
        assert c.paper == "kit" or re.match(r"(reading of )?\d{4}\.\d{5}", c.paper), c.id
        assert (c.evidence in ("bar", "later")) <= (c.paper == "kit"), (
            f"{c.id}: a paper's claim has a paper's evidence"
        )
        stated = c.paper[:1].isdigit()
        assert (c.kind == "paper") <= stated and (c.kind == "kit") <= (not stated), (
            f"{c.id}: a paper's claim has its place; a reading of one is the kit's"
        )
        assert (c.kind == "theorem") <= (c.scope == "exact"), c.id
        assert c.says.endswith(".") and c.says[0].isupper() and not c.refuted_by.endswith("."), c.id


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_and_ledger_agree(path):
    """Every id that a notebook judges is in the ledger, under its name, and the other way round."""
    own = {id for id, c in HERE.items() if c.notebook == path.stem}
    patterns = list(judged_in(path))
    known = LEDGER if path.stem == "08_your_own_pairs" else own  # there others' claims too
    for pattern in patterns:
        assert any(re.fullmatch(pattern, id) for id in known), (
            f"{pattern}: not in the ledger for {path.stem}"
        )
    left = {id for id in own if not any(re.fullmatch(pattern, id) for pattern in patterns)}
    assert not left, f"in the ledger, and never judged by {path.stem}: {left}"
    printed = printed_in(path)
    assert own and {id for _, id, _ in printed} <= own
    of_several = path.stem == "07_a_real_model"  # three seeds
    for word, id, found in printed if not of_several else ():
        committed = re.search(r"full runs: .*\(seeds (0 to 2|5 to 12)\)\n +this page: ", found)
        of_one = LEDGER[id].scope == "exact" or "bootstrap" in LEDGER[id].metric
        assert committed or of_one or word == "undecided", f"{id}: one seed decides nothing"


def test_a_claim_says_whose_it_is():
    """The kit's own is nobody else's; a paper's names place and evidence."""
    kinds = [(claim.paper, claim.evidence, claim.source) for claim in LEDGER.values()]
    assert ("kit", "bar", "(kit)") in kinds
    for paper, evidence, source in kinds:
        mine = (paper, evidence) == ("kit", "bar")
        assert source == "(kit)" if mine else source == f"({paper}; {evidence})"


def test_no_notebook_has_a_rule_of_its_own():
    for path in NOTEBOOKS:
        source = "\n".join("".join(c["source"]) for c in code(path))
        assert not re.search(
            r"claims\.(judge|verdict)|study\.claim\([^\n]*(above|below)=", source
        ), path.stem


def test_what_is_open_only_at_scale_says_what_would_test_it():
    for c in LEDGER.values():
        if c.scope == "only at scale":
            profile = re.match(r"notebooks/profiles/\w+\.yaml", c.profile)
            assert (
                profile
                and (ROOT / profile[0]).is_file()
                and "-p model=" in c.profile
                and "-p data=" in c.profile
            )
            verdict = claims.judge(c.id)
            assert (verdict["verdict"], verdict["n"]) == ("needs_scale", 0)
            with pytest.raises(ValueError, match="only at scale"):
                claims.judge(c.id, [1.0, 2.0])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"sayz": "x"}, "unknown field 'sayz'; the fields are id, paper"),
        ({"refuted_by": None}, "refuted_by"),
        ({"says": ""}, "says: '' must be a text"),
        ({"paper": 2505.2}, "paper: 2505.2 must be a text"),
        ({"id": "a[keep=1]"}, "a setting is given where the claim is judged"),
        ({"scope": "local"}, "scope: 'local' must be one of exact, statistical, only at scale"),
        ({"evidence": "X"}, "evidence: 'X' must be one of P, S, D, M, bar, later"),
        (
            {"rule": {"above": 0.0, "below": 1.0}},
            "rule: {'above': 0.0, 'below': 1.0} must be one of",
        ),
        ({"rule": {"near": 1.0}}, "must be one of {above: x}, {below: x}"),
        ({"rule": {"within": 0.1}}, "a margin, and nothing else, has its why: in the rule"),
        ({"rule": {"within": 0.0, "why": "x"}}, "must have a margin above 0"),
        ({"rule": {"above": 0.5}}, "why: missing; a bar other than 0 says why it is what it is"),
        ({"kind": "guess"}, "kind: 'guess' must be one of theorem, world, paper, kit"),
        (
            {"rule": {"above": "big"}},
            "'big'} must be one of {above: x}, {below: x}, x a finite number",
        ),
        ({"rule": {"above": float("nan")}}, "x a finite number"),
        ({"rule": 1.0}, "rule: 1.0 must be one of"),
        ({"range": [0.5, 1]}, "range: [0.5, 1] must be [low, high] with the rule's 0 inside"),
        ({"range": [0]}, "range: [0] must be [low, high]"),
        ({"range": "share"}, "range: 'share' must be [low, high]"),
        ({"notebook": "09_none"}, "notebook: '09_none' is not in notebooks/"),
        ({"scope": "only at scale"}, "profile: say what would test it"),
        ({"profile": "x.yaml"}, "and nowhere else"),
    ],
)
def test_bad_entries_are_refused_by_name(change, words):
    entry = {"id": "one.claim"} | {
        k: v for k, v in (WHOLE | {"id": "one.claim"} | change).items() if v is not None
    }
    with pytest.raises(ValueError) as refused:
        claims.read(yaml.safe_dump([entry]))
    assert words in str(refused.value) and str(refused.value).startswith(
        f"claims.yaml: {entry['id']}: "
    )


def test_an_id_twice_and_no_list_are_refused():
    assert list(claims.read(yaml.safe_dump([WHOLE]))) == [WHOLE["id"]]
    with pytest.raises(ValueError, match=f"{WHOLE['id']}: in the ledger twice"):
        claims.read(yaml.safe_dump([WHOLE, copy.deepcopy(WHOLE)]))
    for text, words in (
        ("a: 1", "a list of claims"),
        ("- x", "entry 1: write it as fields"),
        ("- says: x", "entry 1: id is missing"),
    ):
        with pytest.raises(ValueError, match=words):
            claims.read(text)


# ---------------------------------------------------------------- how it judges


@pytest.mark.parametrize("id", HERE)
def test_every_rule_can_go_every_way(id):
    claim = HERE[id]
    sign = -1 if claim.side == "below" else 1
    limit = claim.limit
    rooms = [abs(limit - end) for end in claim.range if end is not None]
    rooms += [limit / 2] if claim.side == "within" else []
    step = min([1.0, *(room / 2 for room in rooms if room)])  # values that the claim's range allows
    word = lambda v: claims.judge(id, v)["verdict"]
    if claim.side == "within":
        for end in (limit, -limit):
            assert word([end * v for v in (0.1, 0.11, 0.09)]) == "holds"
            assert word([end + np.sign(end) * step * v for v in (1.0, 1.1, 0.9)]) == "does_not_hold"
        inside = [limit / 2 + 0.6 * limit * v for v in (-1, 0, 1)]
        assert word(inside) == "undecided", "the interval crosses the margin"
        return
    values = lambda direction: [limit + direction * sign * step * v for v in (1.0, 1.1, 0.9)]
    assert (word(values(1)), word(values(-1))) == ("holds", "does_not_hold")
    assert word([limit - step, limit + 1.1 * step, limit + 0.1 * step]) == "undecided"
    assert word(values(1)[:1]) == ("holds" if claim.scope == "exact" else "undecided")


def test_exact_claims_are_judged_by_their_range():
    id = "delta.same_optimum"  # below 0.001
    assert claims.judge(id, [0.0, 0.0009]) | {
        "low": 0.0,
        "high": 0.0009,
        "verdict": "holds",
    } == claims.judge(id, [0.0, 0.0009])
    assert claims.judge(id, [0.0, 0.0, 0.0, 0.002])["verdict"] == "undecided", (
        "one value on the other side"
    )
    assert claims.judge(id, [0.002])["verdict"] == "does_not_hold"
    assert claims.judge(id, [0.001])["verdict"] == "undecided", "on the bar is not below it"


def test_statistical_claims_are_judged_by_a_t_interval():
    judged = claims.judge("safedpo.helpful", [1.0, 2.0, 3.0])
    assert judged["value"] == 2.0 and judged["high"] - 2 == 2 - judged["low"] == pytest.approx(
        4.3027 / 3**0.5, abs=1e-4
    )
    assert claims.judge("safedpo.helpful", [1.0])["low"] is None
    far = claims.judge("safedpo.unsafe", [0.001, 0.001, 0.012])
    assert far["value"] < 0.005 < far["high"] and far["verdict"] == "undecided", (
        "the mean alone decides nothing"
    )


def test_words_of_what_was_judged():
    words = lambda id, values: claims.found(claims.judge(id, values), LEDGER[id].scope)
    assert words("safedpo.helpful", [1.0, 2.0, 3.0]) == (
        "2.0000, -0.4841 to 4.4841, n = 3, p = 0.2254"
    )
    assert words("safedpo.helpful", [-0.0]) == "0.0000, n = 1"
    assert words("safedpo.refusal", [0.01] * 3) == "0.0100, no variation, n = 3, p < 0.0001"
    assert words("delta.same_optimum", [0.0, 0.0]) == "0.0000, 0.0000 to 0.0000, n = 2", (
        "a range of exact values"
    )


def test_no_interval_leaves_the_range_of_its_claim():
    """Values that a plain t-interval would take below 0, above 1 or beyond -100."""
    share = claims.judge("safedpo.refusal", [0.0, 0.001, 0.05])
    assert 0 < share["low"] < share["value"] < share["high"] < 1
    found = claims.judge("dog_d.finds_rare", [0.9, 0.99, 1.0])
    assert found["value"] < found["high"] < 1
    assert claims.judge("dpo.on_frontier", [0.001, 0.002, 0.027])["low"] > 0
    assert claims.judge("dog_d.five_points_safer", [-99.0, -60.0, -99.9])["low"] > -100
    with pytest.raises(
        ValueError, match=r"claim safedpo.unsafe: values: \[0.1, 2.0\] do not all lie in 0 to 1"
    ):
        claims.judge("safedpo.unsafe", [0.1, 2.0])


def test_every_share_distance_and_divergence_has_its_range():
    """What a metric's words say of its range, and the ledger states, agree."""
    for c in (c for c in HERE.values() if c.scope == "statistical" and "bootstrap" not in c.metric):
        words = re.sub(r"\[[^\]]*\]", "", c.metric)
        name = words.split(" ")[0].removesuffix(",")
        if words.startswith("|"):
            assert c.range[:1] == (0,), c.id
        elif " - " in words and (known := intervals.range_of(name, difference=True)):
            scale = 100 if "points" in words else 1
            assert c.range == tuple(scale * v for v in known) or c.id == "dog_d.halves_worst", c.id
        elif " - " not in words and " / " not in words and (known := intervals.range_of(name)):
            assert c.range == known, c.id


def test_an_interval_found_elsewhere_is_taken_as_it_is():
    """A bootstrap over pairs, as notebook 08 hands it over."""
    better, worse = np.arange(200) % 10 < 8, np.arange(200) % 10 < 5
    for one, two, word in (
        (better, worse, "holds"),
        (worse, better, "does_not_hold"),
        (better, better, "undecided"),
    ):
        ahead = evaluate.accuracy([one - 0.5], against=[two - 0.5])
        judged = claims.judge("dog_d.orders_better", measured=ahead)
        assert (judged["verdict"], judged["n"], judged["p"]) == (word, 200, None)
        assert (judged["value"], judged["low"], judged["high"]) == ahead[:3]
    assert (
        claims.judge("dog_d.orders_better", measured=(0.1, None, None, 1))["verdict"] == "undecided"
    )


def test_settings_become_part_of_the_id():
    judged = claims.judge("cdpo.lambda", [0.01], cost_limit=0.0)
    assert judged["id"] == "cdpo.lambda[cost_limit=0]"
    assert claims.judge("delta.safer", [0.1], steps=200)["id"] == "delta.safer[steps=200]"
    assert (
        claims.judge("cdpo.lambda", [0.01], cost_limit=-0.4, by="soft")["id"]
        == "cdpo.lambda[cost_limit=-0.4,by=soft]"
    )


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(KeyError, match="'no.claim' is not in claims.yaml"):
        claims.judge("no.claim", [1.0])
    for values in ([], [float("nan")], [1.0, float("inf")]):
        with pytest.raises(ValueError, match="safedpo.unsafe.*one finite value a seed"):
            claims.judge("safedpo.unsafe", values)
    with pytest.raises(ValueError, match="finite numbers"):
        claims.judge("safedpo.unsafe", measured=(0.1, 0.0, float("nan"), 5))
    for given in ({}, {"values": [1.0], "measured": (1.0, 0.0, 2.0, 3)}):
        with pytest.raises(ValueError, match="either values"):
            claims.judge("safedpo.unsafe", **given)


# ---------------------------------------------------------------- broken on purpose: the verdict turns

SEEDS, BETA = (0, 1, 2), 0.5


class Bench:
    """Tiny trainings in the world with the grammar softmax, judged on every third held-out prompt."""

    def __init__(self, world):
        self.world, self.held = world, world.select("heldout")[::3]
        self.reference = {
            s: replace(references.reference_policy(world, seed=s)[0], constrained=True)
            for s in SEEDS
        }
        self.table = {s: pairs.label(world.pairs(600, seed=s), "better") for s in SEEDS}
        self.exact = {s: evaluate.exact(self.reference[s], self.held) for s in SEEDS}

    def fit(self, seed, table, **changes):
        """log-probs [P, R] of the policy trained on a table."""
        setting = (
            dict(beta=BETA, steps=24, batch_size=16, learning_rate=3e-3, seed=seed, use_cache=False)
            | changes
        )
        trained = train.align(
            self.reference[seed], pairs.tokenize(table, self.reference[seed]), **setting
        )
        return evaluate.exact(trained.policy, self.held).logp

    def per_seed(self, tables, quantity, **changes):
        """One value a seed: `tables` makes the training table, `quantity` reads (seed, log-probs)."""
        return np.array([quantity(s, self.fit(s, tables(self.table[s]), **changes)) for s in SEEDS])


@pytest.fixture(scope="module")
def bench(world):
    return Bench(world)


def verdicts(id, *groups):
    return tuple(claims.judge(id, values)["verdict"] for values in groups)


def test_safedpo_without_the_swap(bench):
    """An unsafe winner that stays the winner, and no longer is the loser: P(unsafe) leaves the bar."""

    def without_swap(table):
        u_w, u_l = safedpo.unsafe_labels(table)
        return table[~(u_w & u_l)].reset_index(drop=True)

    unsafe = lambda seed, logp: optimum.expect(logp, bench.world.cost[bench.held] > 0)
    longer = dict(steps=60, learning_rate=5e-3)
    honest, broken = (bench.per_seed(t, unsafe, **longer) for t in (safedpo.safedpo, without_swap))
    assert verdicts("safedpo.unsafe", honest, broken) == ("holds", "does_not_hold")


def test_cdpo_with_the_sign_of_the_cost_swapped(bench):
    """r + lambda c in place of r - lambda c: E[c] rises with lambda."""
    swapped = lambda table: cdpo.relabel(
        table.assign(**{f"cost_{k}": -table[f"cost_{k}"] for k in (0, 1)}), 2.0
    )
    cost = lambda seed, logp: optimum.expect(logp, bench.world.cost[bench.held])
    plain, honest, broken = (
        bench.per_seed(t, cost) for t in (lambda t: t, lambda t: cdpo.relabel(t, 2.0), swapped)
    )
    assert (honest < plain).all() and (broken > plain).all()


def test_soft_labels_of_the_wrong_response(bench):
    """1 - p in place of p: further from the optimum than hard labels, not nearer."""
    soft = lambda table: pairs.soft_label(table, table.reward_0, table.reward_1)
    wrong = lambda table: soft(table).assign(p=lambda t: 1 - t.p)
    best = {
        s: optimum.optimal(e.logp, bench.world.reward[bench.held], beta=BETA)
        for s, e in bench.exact.items()
    }
    distance = lambda seed, logp: optimum.kl(logp, best[seed])
    hard, honest, broken = (bench.per_seed(t, distance) for t in (lambda t: t, soft, wrong))
    ratios = (intervals.log_ratio(soft, hard) for soft in (honest, broken))
    assert verdicts("dpo_soft.nearer_than_hard", *ratios) == (
        "holds",
        "does_not_hold",
    )


def test_a_margin_on_pairs_of_equal_status(bench):
    """The margin moves the optimum as soon as pairs of two safe responses have one (exact, a table of 51 responses)."""
    some, prompt = np.arange(0, len(bench.world.responses), 12), bench.held[2]
    reward, cost = bench.world.reward[prompt][some], bench.world.cost[prompt][some]
    ref, unsafe, (a, b) = (
        optimum.normalise(bench.exact[0].logp[2:3, some]),
        cost > 0,
        tabular.all_pairs(len(some)),
    )
    p = np.where(unsafe[a] != unsafe[b], unsafe[b], 1 / (1 + np.exp(reward[b] - reward[a])))
    safe = ~unsafe[a] & ~unsafe[b]

    def apart(delta, elsewhere):
        margin = delta * (1.0 * unsafe[b] - unsafe[a]) + elsewhere * delta * safe * np.sign(
            reward[a] - reward[b]
        )
        fitted = tabular.fit(
            ref[0], p, beta=BETA, margin=margin, weight=1.0 * ~(unsafe[a] & unsafe[b])
        )
        return optimum.total_variation(
            fitted[None], optimum.safe_optimal(ref, reward[None], cost[None], beta=BETA)
        )

    honest, broken = ([apart(delta, elsewhere) for delta in (2.0, 5.0)] for elsewhere in (0.0, 1.0))
    assert verdicts("delta.same_optimum", honest, broken) == ("holds", "does_not_hold")


@dataclass(frozen=True)
class FirstTokens:
    """A tie rule gone wrong: of equal scores it keeps the share that comes first."""

    keep: float

    def __call__(self, logratio_w, logratio_l, mask_w, mask_l, rows):
        first = lambda m: m & (m.cumsum(1) <= torch.ceil(self.keep * m.sum(1, keepdim=True)))
        return first(mask_w).to(logratio_w), first(mask_l).to(logratio_l)


def test_tied_scores_that_keep_the_first_tokens(bench):
    """Where the policy is its own score reference all scores tie; a rule that drops some is no DPO step."""
    tokens = pairs.tokenize(bench.table[0], bench.reference[0])
    setting = dict(beta=BETA, steps=1, batch_size=16, learning_rate=3e-3, seed=0, use_cache=False)
    levers = (None, selective.TopTokens(0.4), FirstTokens(0.4))
    plain, *others = (
        list(
            train.align(
                bench.reference[0], tokens, token_lever=lever, **setting
            ).policy.model.parameters()
        )
        for lever in levers
    )
    apart = [[max((x - y).abs().max().item() for x, y in zip(plain, other))] for other in others]
    assert verdicts("selective.first_step_is_dpo", *apart) == ("holds", "does_not_hold")


# ---------------------------------------------------------------- equivalence, several settings, many claims
MARGIN = "cdpo.cost"  # within 0.03


@pytest.mark.parametrize("mean", [-0.05, -0.02, 0.0, 0.01, 0.06])
def test_within_is_two_one_sided_tests_of_scipy(mean):
    claim, values = LEDGER[MARGIN], mean + np.random.default_rng(0).normal(0, 0.01, 6)
    side = lambda at, way: stats.ttest_1samp(values, at, alternative=way).pvalue
    holds, refuted = claims.one_sided(claim, lambda at: intervals.p_above(values, at))
    assert holds == pytest.approx(max(side(0.03, "less"), side(-0.03, "greater")), abs=1e-12)
    assert refuted == pytest.approx(min(side(0.03, "greater"), side(-0.03, "less")), abs=1e-12)
    judged = claims.judge(MARGIN, values)
    word = "holds" if holds < 0.025 else "does_not_hold" if refuted < 0.025 else "undecided"
    assert judged["verdict"] == word and judged["p"] == pytest.approx(2 * min(holds, refuted))


def simulated(id, mean, spread, n, draws=2000, seed=0):
    """Shares of the three verdicts over samples of n seeds."""
    g = np.random.default_rng(seed)
    words = [claims.judge(id, mean + g.normal(0, spread, n))["verdict"] for _ in range(draws)]
    return {word: words.count(word) / draws for word in ("holds", "does_not_hold", "undecided")}


@pytest.mark.parametrize("spread", [0.005, 0.01])
def test_equivalence_is_claimed_wrongly_in_one_of_forty(spread):
    """At the margin itself, by simulation: 2.5 %, within four standard errors."""
    found = simulated(MARGIN, 0.03, spread, 8)
    assert found["holds"] < 0.025 + 4 * (0.025 * 0.975 / 2000) ** 0.5
    assert found["does_not_hold"] < 0.025 + 4 * (0.025 * 0.975 / 2000) ** 0.5
    assert simulated(MARGIN, 0.0, spread, 8)["holds"] > 0.95, "and where it is so, it is seen"
    assert simulated(MARGIN, -0.06, spread, 8)["does_not_hold"] > 0.95, "on either side"


def test_a_wide_interval_around_0_is_no_equivalence():
    """What the rule by intervals that hold 0 got wrong: noise is not sameness."""
    assert claims.judge(MARGIN, [-0.5, 0.5, -0.4, 0.4])["verdict"] == "undecided"


def settings_of(*groups):
    return [claims.judge(MARGIN, v, cost_limit=float(i)) for i, v in enumerate(groups)]


def test_a_claim_over_settings_has_one_verdict():
    claim = LEDGER[MARGIN]
    near, wide, far = [0.001, 0.002, -0.001], [-0.1, 0.1, 0.02], [0.2, 0.21, 0.19]
    for groups, word in (
        ((near, near), "holds"),
        ((near, wide), "undecided"),
        ((near, far), "does_not_hold"),
        ((wide, far), "does_not_hold"),
        ((near,), "holds"),
    ):
        judged = settings_of(*groups)
        both = claims.together(claim, judged)
        assert (both["id"], both["verdict"]) == (MARGIN, word), groups
        assert both["at"] in [one["id"] for one in judged]
    holds = claims.together(claim, settings_of(near, [0.01, 0.012, 0.008]))
    assert holds["p"] == max(one["p"] for one in settings_of(near, [0.01, 0.012, 0.008]))
    refuted = claims.together(claim, settings_of(far, near, near))
    assert refuted["p"] == pytest.approx(3 * settings_of(far)[0]["p"]), "times their number"
    alone = claims.together(claim, settings_of(near))
    assert alone["p"] == settings_of(near)[0]["p"]


def test_exact_claims_over_settings():
    claim = LEDGER["delta.same_optimum"]
    judged = [claims.judge(claim.id, v, at=i) for i, v in enumerate(([0.0], [0.002]))]
    assert claims.together(claim, judged)["verdict"] == "does_not_hold"
    assert claims.together(claim, judged[:1])["verdict"] == "holds"


def test_many_claims_are_corrected_for():
    p = [0.001, None, 0.04, 0.03, 0.5]
    known = stats.false_discovery_control([0.001, 0.04, 0.03, 0.5], method="bh")
    assert claims.adjusted(p) == [known[0], None, known[1], known[2], known[3]]
    assert claims.adjusted(p)[2] > 0.05 > p[2], "decided alone, not among four"
    assert claims.adjusted([None]) == [None] and claims.adjusted([]) == []


def test_among_claims_without_effect_few_are_decided():
    """Families of 40 claims of which 10 are so: wrong verdicts among the decided, on average."""
    g, wrong = np.random.default_rng(1), []
    effect = np.where(np.arange(40) < 10, 1.0, 0.0)
    for _ in range(150):
        values = effect[:, None] + g.normal(0, 0.6, (40, 8))
        p = claims.adjusted([claims.judge("dpo_safebetter.more_helpful", v)["p"] for v in values])
        decided = np.array(p) < 0.05
        false = decided & (effect == 0)
        wrong.append(false.sum() / max(1, decided.sum()))
    assert np.mean(wrong) < 0.05 + 3 * np.std(wrong) / len(wrong) ** 0.5


def test_a_bootstrap_of_what_never_varies_decides_nothing():
    """Three held-out pairs, all ordered rightly: every resample is 1, and that is no evidence."""
    id = "dpo.beats_bag_of_words"
    assert claims.judge(id, measured=(1.0, 1.0, 1.0, 3))["verdict"] == "undecided"
    assert claims.judge(id, measured=(0.2, 0.1, 0.3, 400))["verdict"] == "holds"
