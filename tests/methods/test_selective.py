"""Selective-DPO: which tokens are kept, that they alone enter the loss, and the relatives on the same loss."""

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score

from safealign_utils import evaluate, pairs, train
from safealign_utils.engine.content import content
from safealign_utils.logprobs import LogProbs, log_ratios, reference_logprobs
from safealign_utils.loss import preference_loss
from safealign_utils.methods import selective as s
from safealign_utils.methods import token_controls
from safealign_utils.packing import length_mask
from safealign_utils.train import align

BETA, KEEPS, SIDES = 0.5, (0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.9), {"chosen": 1, "rejected": -1}
CACHED = dict(beta=BETA, steps=3, batch_size=10, learning_rate=2e-3, seed=0)
SETTING = CACHED | {"use_cache": False}
RANDOM = s.TopTokens(0.4, token_controls.Random())


@pytest.fixture(scope="module")
def few(world, reference):
    """Ten pairs, so that every step reads all of them, plain DPO on them, and its log-ratios."""
    table = pairs.label(world.pairs(10, seed=0))
    dpo = align(reference, tokens := pairs.tokenize(table, reference), **SETTING)
    return SimpleNamespace(
        table=table, tokens=tokens, dpo=dpo, offset=s.offset(dpo.policy, reference, tokens)
    )


def by_hand(score, keep):
    """The rule in plain Python: the positions kept of one response's scores."""
    score, k = [round(float(x), 9) for x in score], math.ceil(Fraction(str(keep)) * len(score))
    tied = k > 0 and len(set(score)) == 1
    return sorted(
        sorted(range(len(score)), key=lambda t: (-score[t], t))[: len(score) if tied else k]
    )


def check_kept(rows, scores, lengths, keep):
    for row, score, n in zip(rows, scores, lengths):
        assert np.flatnonzero(row).tolist() == by_hand(score[:n], keep)


def kept(score, keep, dtype=torch.float64):
    score = torch.tensor([score], dtype=dtype)
    return (
        s.top_share(score, torch.ones_like(score, dtype=torch.bool), keep)[0]
        .nonzero()[:, 0]
        .tolist()
    )


def drawn(B=40):
    """Log-ratios of B pairs of uneven length, zero behind the end, and their masks."""
    g = np.random.default_rng(0)
    masks = [length_mask(g.integers(1, 30, B)) for _ in range(2)]
    return *(torch.from_numpy(g.normal(size=m.shape)) * m for m in masks), *masks


def flat(table):
    return np.concatenate([*table.chosen, *table.rejected])


# log-probs of four chosen and three rejected tokens under theta, pi_ref and the score reference
LOGP_W = np.array([[-1.0, -0.5, -2.0, -0.25], [-1.5, -0.5, -1.0, -0.75], [-1.2, -0.1, -2.5, -0.75]])
LOGP_L = np.array([[-0.3, -1.1, -0.8], [-0.4, -0.6, -0.8], [-0.2, -1.5, -0.1]])


@pytest.mark.parametrize(
    "given, s_w, s_l, mask_w, mask_l, z",
    [
        (False, [-0.5, 0.0, 1.0, -0.5], [0.1, -0.5, 0.0], [0, 1, 1, 0], [1, 0, 1], -1.1),
        (True, [-0.2, 0.4, -0.5, -0.5], [-0.1, 0.4, -0.7], [1, 1, 0, 0], [1, 1, 0], 0.9),
    ],
)
def test_scores_masks_and_loss_by_hand(given, s_w, s_l, mask_w, mask_l, z):
    """A log-ratio of exactly 0 is a token like any other: it counts, and it is kept."""
    w, l = (torch.from_numpy(p[:1] - p[1]) for p in (LOGP_W, LOGP_L))
    offset = (
        s.TokenTable(*[[np.zeros(2), p[2] - p[1]] for p in (LOGP_W, LOGP_L)]) if given else None
    )  # of pair 1
    scores = s.Signed(offset)(w, l, [1])
    assert [x[0].tolist() for x in scores] == [
        pytest.approx(s_w, abs=1e-12),
        pytest.approx(s_l, abs=1e-12),
    ]
    m = s.TopTokens(0.4, s.Signed(offset))(
        w, l, *(torch.ones_like(x, dtype=torch.bool) for x in (w, l)), [1]
    )
    assert [x[0].tolist() for x in m] == [mask_w, mask_l]
    out = preference_loss(w, l, beta=BETA, tokens_w=m[0], tokens_l=m[1])
    assert out.z.item() == pytest.approx(BETA * z, abs=1e-12)


@pytest.mark.parametrize(
    "key, score",
    [
        (lambda x: x, s.Signed()),
        (lambda x: -x, token_controls.Inverted()),
        (abs, token_controls.Absolute()),
    ],
)
@pytest.mark.parametrize(
    "keep, keep_rejected", [(0.2, None), (0.4, 0.0), (0.4, 1.0), (1.0, None), (0.0, 0.3)]
)
def test_masks_by_the_rule_and_a_loss_of_the_selected_scores(keep, keep_rejected, key, score):
    w, l, mask_w, mask_l = drawn()
    m = s.TopTokens(keep, score, keep_rejected)(w, l, mask_w, mask_l, None)
    check_kept(m[0], key(-w), mask_w.sum(1), keep)
    check_kept(m[1], key(l), mask_l.sum(1), keep if keep_rejected is None else keep_rejected)
    loss = preference_loss(w, l, beta=BETA, tokens_w=m[0], tokens_l=m[1]).loss
    wanted = torch.nn.functional.softplus(BETA * ((m[0] * -w).sum(1) + (m[1] * l).sum(1)))
    assert (loss - wanted).abs().max() < 1e-10


@pytest.mark.parametrize(
    "lever",
    [
        s.TopTokens(1.0),
        s.TopTokens(1.0, token_controls.Random()),
        s.TopTokens(0.3, keep_rejected=1.0),
    ],
)
def test_loss_and_gradient_see_the_mask_as_a_constant(lever):
    w, l, *masks = drawn()
    m, out = lever(w.requires_grad_(), l.requires_grad_(), *masks, None), []
    for given in (m, [x.detach().clone() for x in m], [x.double() for x in masks]):
        loss = preference_loss(w, l, beta=BETA, tokens_w=given[0], tokens_l=given[1]).loss
        grads = torch.autograd.grad(loss.sum(), (w, l), retain_graph=True)
        out.append(torch.cat([loss.detach(), *(x.flatten() for x in grads)]))
    assert torch.equal(out[0], out[1]) and not any(x.requires_grad for x in m)
    assert torch.equal(out[0], out[2]) == (lever.keep == 1.0), "all tokens are DPO"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_share_is_rounded_up_exactly(dtype):
    mask = length_mask(np.arange(1, 102))
    for keep in (*KEEPS, 0.07, 0.28, 0.56):  # in floats 0.28 * 25 is above 7
        out = s.top_share(torch.arange(101.0).expand_as(mask).to(dtype), mask, keep)
        assert out.sum(1).tolist() == [math.ceil(Fraction(str(keep)) * n) for n in range(1, 102)]


def test_ties_go_to_the_earlier_token_and_where_all_tie_all_are_kept():
    assert kept([1, 2, 2, 2, 0], 0.4) == [1, 2] and kept([0, 1, 0, 0, 1], 0.6) == [0, 1, 4]
    assert kept([-1e-12, 1e-12, -1], 0.3) == [0], "the sign of a zero is no difference"
    assert [kept([0.7] * 11, keep) for keep in (*KEEPS, 0)] == [list(range(11))] * len(KEEPS) + [[]]


@pytest.mark.parametrize(
    "dtype, noise, real",
    [
        (torch.float64, 1e-10, 1e-8),
        (torch.float32, 1e-6, 1e-4),
        (torch.bfloat16, 1e-6, 0.1),
        (torch.float16, 1e-6, 0.1),
    ],
)
def test_rounding_noise_is_a_tie_and_more_is_not(dtype, noise, real):
    def row(e):
        return [1, 2 - e, 2, 2 + e, -60]

    assert kept(row(noise), 0.2, dtype) == [1] and kept(row(real), 0.2, dtype) == [3]
    assert kept([noise, 0, -noise], 0.3, dtype) == [0, 1, 2] and kept([0, real, 0], 0.3, dtype) == [
        1
    ]
    x, mask = torch.tensor([row(real)], dtype=dtype), torch.ones(1, 5, dtype=torch.bool)
    assert s.TopTokens(0.2)(x, x, mask, mask, None)[1].tolist() == [[0, 0, 0, 1, 0]]


@pytest.mark.parametrize("garbage", [0.0, 1e300, math.inf, -math.inf, math.nan])
def test_padding_is_never_kept_and_never_read(garbage):
    w, _, mask, _ = drawn()
    scores = -w.abs() - 1  # below a padding of zeros
    scores[0] = -3.0  # a row whose tokens all tie
    for keep in (0.1, 0.4, 1.0):
        check_kept(
            s.top_share(scores.masked_fill(~mask, garbage), mask, keep), scores, mask.sum(1), keep
        )


def test_select_is_the_rule_on_a_whole_table(few):
    for keep in (0.0, *KEEPS, 1.0):
        for side in SIDES:
            ours, scores = (getattr(t, side) for t in (s.select(few.offset, keep), few.offset))
            check_kept(ours, scores, map(len, scores), keep)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
@pytest.mark.parametrize("name", ["keep", "keep_rejected"])
def test_a_share_outside_0_and_1_is_refused(name, share):
    with pytest.raises(ValueError, match=f"^{name}={share}: .* between 0 and 1"):
        s.TopTokens(**{"keep": 0.4, name: share})


def watch(lever, reference, tokens, **changes):
    """The masks of every step [steps, all tokens], what the lever was given and returned in each, and the run."""
    seen = []

    def watched(w, l, mask_w, mask_l, rows):
        assert not w.requires_grad and not l.requires_grad
        out, order = lever(w, l, mask_w, mask_l, rows), np.argsort(rows)
        seen.append([x[order] for x in (w, l, *out)])
        return out

    run = align(reference, tokens, token_lever=watched, **SETTING | changes)
    own = torch.cat([length_mask(n).flatten() for n in (tokens.lengths_w, tokens.lengths_l)])
    return (
        torch.stack([torch.cat([m.flatten() for m in step[2:]])[own] for step in seen]),
        seen,
        run,
    )


def test_all_tokens_train_dpo_bit_for_bit(reference, few):
    scores, ones = (s.Signed(few.offset), token_controls.Random()), few.offset.map(np.ones_like)
    for lever in (*(s.TopTokens(1.0, score) for score in scores), token_controls.Weights(ones)):
        run = align(reference, few.tokens, token_lever=lever, **SETTING)
        assert run.policy.hash == few.dpo.policy.hash != reference.hash and run.log.equals(
            few.dpo.log
        )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_first_step_keeps_every_token_and_later_masks_are_found_anew(reference, few, dtype):
    masks, seen, run = watch(s.TopTokens(0.1), reference.to(dtype), few.tokens)
    assert masks[0].all() and run.log.loss[0] == pytest.approx(math.log(2), abs=1e-6)
    assert not masks[1].all() and not torch.equal(masks[1], masks[2])
    for w, l, m_w, m_l in seen if dtype == "float64" else ():
        (
            check_kept(m_w, -w, few.tokens.lengths_w, 0.1),
            check_kept(m_l, l, few.tokens.lengths_l, 0.1),
        )


def test_fixed_masks_stay(reference, few):
    masks, _, run = watch(s.TopTokens(0.4, token_controls.Fixed(few.offset)), reference, few.tokens)
    selected = s.select(few.offset, 0.4)
    assert (masks == torch.from_numpy(flat(selected))).all()
    assert (
        align(
            reference, few.tokens, token_lever=token_controls.Weights(selected), **SETTING
        ).policy.hash
        == run.policy.hash
    )


def test_random_masks_have_the_share_and_come_again(reference, few):
    assert not torch.equal(*(RANDOM(*drawn(), None)[0] for _ in range(2))), (
        "another mask at every step"
    )
    masks, seen, run = watch(RANDOM, reference, few.tokens)
    again, _, second = watch(RANDOM, reference, few.tokens)
    other, _, _ = watch(RANDOM, reference, few.tokens, seed=1)
    assert torch.equal(masks, again) and run.policy.hash == second.policy.hash
    assert len(torch.cat([masks, other]).unique(dim=0)) == 6
    for step in seen:
        for m, lengths in zip(step[2:], (few.tokens.lengths_w, few.tokens.lengths_l)):
            assert m.sum(1).tolist() == [-(-2 * n // 5) for n in lengths]


def test_random_masks_resume_bitwise(reference, few, fresh_cache, monkeypatch):
    setting, real, calls = (
        CACHED | dict(steps=5, save_every=2, token_lever=RANDOM),
        train.log_ratios,
        [],
    )
    straight = align(reference, few.tokens, use_cache=False, **setting)

    def step(*args):
        return (calls.append(1), pytest.fail("stop") if len(calls) == 4 else real(*args))[1]

    monkeypatch.setattr(train, "log_ratios", step)
    with pytest.raises(pytest.fail.Exception, match="stop"):
        align(reference, few.tokens, **setting)
    resumed = align(reference, few.tokens, **setting)
    assert len(calls) == 4 + 3, "it went on after step 2"
    assert resumed.policy.hash == straight.policy.hash and resumed.log.equals(straight.log)


def test_the_cache_tells_two_offsets_apart(reference, few, fresh_cache):
    def run(t):
        return align(
            reference,
            few.tokens,
            token_lever=s.TopTokens(0.4, s.Signed(t)),
            **CACHED | {"steps": 2},
        )

    one, two, again = (run(few.offset.map(f)) for f in (np.copy, np.negative, np.copy))
    assert (one.cached, two.cached, again.cached) == (False, False, True)
    assert one.policy.hash == again.policy.hash != two.policy.hash


def test_a_table_is_named_by_its_values():
    def table(last, *lengths):
        return s.TokenTable([np.ones(n) for n in lengths], [np.arange(3.0), np.array([1.0, last])])

    one = table(0.5, 5, 9)
    others = [
        table(0.5 + 1e-15, 5, 9),
        table(0.5, 9, 5),
        s.TokenTable(one.rejected, one.chosen),
        one.map(np.float32),
    ]
    levers = [s.TopTokens(0.4, s.Signed(t)) for t in (one, *others)]
    assert content(levers[0]) == content(s.TopTokens(0.4, s.Signed(table(0.5, 5, 9))))
    assert (
        len({content(lever) for lever in (*levers, s.TopTokens(0.4, token_controls.Inverted(one)))})
        == 6
    )


# ---------------------------------------------------------------- score references, the oracle, relatives


def test_offset_is_the_difference_of_two_plain_forwards(reference, few):
    assert (
        not flat(s.offset(reference, reference, few.tokens)).any()
        and np.abs(flat(few.offset)).max() > 1e-3
    )
    for side in SIDES:
        x, y = few.tokens.prompts[7], getattr(few.tokens, side)[7]
        logits = [
            p.model(torch.tensor([[*x, *y]])).logits[0, len(x) - 1 : -1]
            for p in (few.dpo.policy, reference)
        ]
        theta, ref = (z.detach().log_softmax(-1)[range(len(y)), y].numpy() for z in logits)
        assert getattr(few.offset, side)[7] == pytest.approx(theta - ref, abs=1e-9)


def test_the_oracles_against_all_responses(world, reference, few):
    grammar, first = reference.grammar, few.table.head(6)
    ref = evaluate.exact(reference, np.unique(first.prompt_id))
    best = token_controls.optimum_offset(grammar, ref, first, reward=world.reward, beta=BETA)
    advantage, choice = (
        token_controls.advantages(grammar, ref, first, values=world.reward),
        token_controls.branching(grammar, first),
    )
    for i, row in first.iterrows():
        replies = [
            grammar.response(row.prompt_id, y)[0].tolist() for y in range(len(world.responses))
        ]
        p, r = np.exp(ref.logp[list(ref.prompts).index(row.prompt_id)]), world.reward[row.prompt_id]
        for side, sign, y in zip(
            SIDES, (1, -1), (row.y_0, row.y_1) if row.chosen == 0 else (row.y_1, row.y_0)
        ):
            offset, value, free = (getattr(t, side)[i] for t in (best, advantage, choice))
            shared = np.array(
                [[x[:t] == replies[y][:t] for t in range(len(replies[y]) + 1)] for x in replies]
            )
            mass, star, total = (weight @ shared for weight in (p, p * np.exp(r / BETA), p * r))
            assert offset == pytest.approx(
                np.log(star[1:] / star[:-1]) - np.log(mass[1:] / mass[:-1]), abs=1e-9
            )
            assert offset.sum() == pytest.approx(
                r[y] / BETA - logsumexp(np.log(p) + r / BETA), abs=1e-9
            )
            assert value == pytest.approx(sign * np.diff(total / mass), abs=1e-9)
            assert value.sum() == pytest.approx(sign * (r[y] - p @ r), abs=1e-9)
            assert free.tolist() == (shared[:, 1:].sum(0) < shared[:, :-1].sum(0)).tolist()
            assert np.abs(value[free == 0]).max() < 1e-12, "a forced token makes nothing"


def test_auc_is_scikit_learns():
    g = np.random.default_rng(0)
    for ties in (1, 10):
        score, positive = g.integers(0, 100, 500) // ties / 7, g.random(500) < 0.2
        assert token_controls.auc(score, positive) == pytest.approx(
            roc_auc_score(positive, score), abs=1e-12
        )
    assert token_controls.auc([1, 1 + 1e-12], [False, True]) == 0.5 and math.isnan(
        token_controls.auc([1, 2], [1, 1]) + token_controls.auc([1, 2], [0, 0])
    )


def test_sepo_is_reference_free_and_length_normalised(reference, few):
    moved = align(reference, few.tokens, **SETTING | {"steps": 2, "seed": 1}).policy
    lever, table = token_controls.sepo(reference, few.dpo.policy, few.tokens, few.table, beta=0.7)
    tokens, every = pairs.tokenize(table, reference), np.arange(len(table))
    w, l, _ = log_ratios(
        LogProbs(moved), tokens, every, moved, reference_logprobs(reference, tokens)
    )
    m = lever(w, l, *(length_mask(n) for n in (tokens.lengths_w, tokens.lengths_l)), every)
    z = preference_loss(
        w, l, beta=0.7, margin=torch.tensor(tokens.margin), tokens_w=m[0], tokens_l=m[1]
    ).z
    logps = [reference_logprobs(p, tokens) for p in (moved, few.dpo.policy, reference)]

    def mean(sign, theta, oracle, ref):
        return theta[by_hand(sign * (oracle - ref), 0.3)].mean()

    sides = [zip(*(getattr(t, side) for t in logps)) for side in SIDES]
    assert z.tolist() == pytest.approx(
        [0.7 * (mean(1, *w) - mean(-1, *l)) for w, l in zip(*sides)], abs=1e-9
    )


def test_tis_dpo_weighs_within_its_clamp(reference, few, monkeypatch):
    monkeypatch.setattr(token_controls, "TIS_CLAMP", (-0.001, 0.002))
    assert (flat(token_controls.tis_dpo(reference, reference, few.tokens).values) == 1).all()
    values = token_controls.tis_dpo(few.dpo.policy, reference, few.tokens).values.map(np.log)
    assert (flat(values).min(), flat(values).max()) == (
        pytest.approx(-0.001),
        pytest.approx(0.002),
    ), "both ends bite"
    for side, sign in SIDES.items():
        ours, ratio = (np.concatenate(getattr(t, side)) for t in (values, few.offset))
        assert ours == pytest.approx(np.clip(sign * ratio, -0.001, 0.002), abs=1e-12)


def test_imitation_of_all_chosen_tokens_is_supervised_fine_tuning(reference, few):
    lever, setting = (
        s.TopTokens(1.0, keep_rejected=0.0),
        {k: v for k, v in SETTING.items() if k != "beta"},
    )
    ours = align(reference, few.tokens, token_lever=lever, link=token_controls.imitation, **SETTING)
    sft = train.fine_tune(reference, few.tokens.prompts, few.tokens.chosen, **setting)
    assert ours.log.grad_norm.tolist() == pytest.approx(sft.log.grad_norm.tolist(), rel=1e-9)
    theta = zip(ours.policy.model.parameters(), sft.policy.model.parameters())
    assert all((a - b).abs().max() < 1e-9 for a, b in theta)


# ---------------------------------------------------------------- the edges of what is allowed
def test_the_weights_of_tis_dpo_end_where_they_are_said_to(monkeypatch):
    ratios = s.TokenTable([np.array([-3.0, -0.6, 0.0, 1.4, 9.0])], [np.array([-9.0, 0.4, 3.0])])
    monkeypatch.setattr(token_controls, "offset", lambda *asked: ratios)
    found = token_controls.tis_dpo(None, None, None).values
    assert np.log(found.chosen[0]).tolist() == pytest.approx([-0.5, -0.5, 0, 1.4, 1.5])
    assert np.log(found.rejected[0]).tolist() == pytest.approx([1.5, -0.4, -0.5])


def test_how_near_two_scores_are_equal():
    for off, share in ((0.9e-9, 0.5), (1.5e-9, 1.0), (-1.5e-9, 0.0)):
        assert token_controls.auc([0.0, off], [0, 1]) == share, off
    assert token_controls.auc([0, 1, 1, 2], [False, True, False, True]) == 0.875
    with np.errstate(all="raise"):  # one kind is missing: no division is tried
        assert all(math.isnan(token_controls.auc([1, 2], [kind] * 2)) for kind in (0, 1))
    assert token_controls.auc(np.array([3, 2, 1]), np.array([1, 0, 0])) == 1.0


def test_tokens_that_are_not_allowed_come_last():
    """A token with 0 is not allowed, one with any number above is."""
    allowed = s.TokenTable([np.array([0.0, 1e-9, 2.0])], [np.array([1.0, 0.0, -1.0])])
    w = torch.tensor([[-9.0, -1.0, -2.0]], dtype=torch.float64)
    one, other = token_controls.Among(s.Signed(), allowed)(w, w, [0])
    assert one.tolist() == [[-math.inf, 1, 2]] and other.tolist() == [[-9, -math.inf, -math.inf]]


def test_random_scores_are_of_the_trainings_generator():
    x = torch.zeros(2, 3, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = token_controls.Random()(x, x, None)
        torch.manual_seed(0)
        wanted = [torch.rand(2, 3, dtype=torch.float64).float() for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted)) and found[0].dtype == x.dtype


def test_scores_without_a_score_reference_are_those_against_the_reference():
    w, l = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 0.5]])
    for found in (s.token_scores(w, l), s.Signed()(w, l, None)):
        assert [x.tolist() for x in found] == [[[-1, 2]], [[3, 0.5]]]
    assert token_controls.imitation(torch.tensor([2.0]), 0.5).tolist() == [-4.0]


def test_a_row_without_tokens_keeps_none():
    mask = torch.tensor([[False, False], [True, False]])
    assert s.top_share(torch.zeros(2, 2), mask, 0.5).tolist() == [[False, False], [True, False]]
    assert not s.top_share(torch.zeros(2, 2), mask, 0.0).any()
