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
from safealign_utils.logprobs import LogProbs, length_mask, log_ratios, reference_logprobs
from safealign_utils.loss import preference_loss
from safealign_utils.methods import selective as s
from safealign_utils.train import align

BETA, KEEPS, SIDES = 0.5, (0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.9), ("chosen", "rejected")
CACHED = dict(beta=BETA, steps=3, batch_size=10, learning_rate=2e-3, seed=0)
SETTING = CACHED | {"use_cache": False}


@pytest.fixture(scope="module")
def few(world, reference):
    """Ten pairs, so that every step reads all of them, plain DPO on them, and its log-ratios."""
    table = pairs.label(world.pairs(10, seed=0))
    tokens = pairs.tokenize(table, reference)
    dpo = align(reference, tokens, **SETTING)
    return SimpleNamespace(table=table, tokens=tokens, dpo=dpo, offset=s.offset(dpo.policy, reference, tokens))


def by_hand(score, keep):
    """The rule in plain Python: the positions kept of one response's scores."""
    score, k = [round(float(x), 9) for x in score], math.ceil(Fraction(str(keep)) * len(score))
    tied = k > 0 and len(set(score)) == 1
    return sorted(sorted(range(len(score)), key=lambda t: (-score[t], t))[: len(score) if tied else k])


def check_kept(rows, scores, lengths, keep):
    for row, score, n in zip(rows, scores, lengths):
        assert row.nonzero()[:, 0].tolist() == by_hand(score[:n], keep)


def kept(score, keep, dtype=torch.float64):
    score = torch.tensor([score], dtype=dtype)
    return s.top_share(score, torch.ones_like(score, dtype=torch.bool), keep)[0].nonzero()[:, 0].tolist()


def drawn(B=40):
    """Log-ratios of B pairs of uneven length, zero behind the end, and their masks."""
    g = np.random.default_rng(0)
    mask_w, mask_l = (length_mask(g.integers(1, 30, B)) for _ in range(2))
    return *(torch.from_numpy(g.normal(size=m.shape)) * m for m in (mask_w, mask_l)), mask_w, mask_l


def random_table(seed, lengths=((5, 9, 1), (7, 2, 12))):
    g = np.random.default_rng(seed)
    return s.TokenTable(*[[g.normal(size=n).round(1) for n in side] for side in lengths])


def flat(table):
    return np.concatenate([*table.chosen, *table.rejected])


# ---------------------------------------------------------------- scores and the loss

LOGP_W = np.array(
    [[-1.0, -0.5, -2.0, -0.25], [-1.5, -0.5, -1.0, -0.75], [-1.2, -0.1, -2.5, -0.75]]
)  # theta, ref, score
LOGP_L = np.array([[-0.3, -1.1, -0.8], [-0.4, -0.6, -0.8], [-0.2, -1.5, -0.1]])


@pytest.mark.parametrize("given, s_w, s_l, mask_w, mask_l, z", [
    (False, [-0.5, 0.0, 1.0, -0.5], [0.1, -0.5, 0.0], [0, 1, 1, 0], [1, 0, 1], -1.1),
    (True, [-0.2, 0.4, -0.5, -0.5], [-0.1, 0.4, -0.7], [1, 1, 0, 0], [1, 1, 0], 0.9),
])  # fmt: skip
def test_scores_masks_and_loss_by_hand(given, s_w, s_l, mask_w, mask_l, z):
    """A log-ratio of exactly 0 is a token like any other: it counts, and it is kept."""
    (w, _, offset_w), (l, _, offset_l) = LOGP_W - LOGP_W[1], LOGP_L - LOGP_L[1]
    other = np.zeros(2)  # pair 0, which is not asked for
    score, rows = s.Signed(s.TokenTable([other, offset_w], [other, offset_l]) if given else None), np.array([1])
    w, l = (torch.from_numpy(x)[None] for x in (w, l))
    scores = score(w, l, rows)
    assert [x[0].tolist() for x in scores] == [pytest.approx(s_w, abs=1e-12), pytest.approx(s_l, abs=1e-12)]
    m = s.TopTokens(0.4, score)(w, l, *(torch.ones_like(x, dtype=torch.bool) for x in (w, l)), rows)
    assert [x[0].tolist() for x in m] == [mask_w, mask_l]
    out = preference_loss(w, l, beta=BETA, tokens_w=m[0], tokens_l=m[1])
    assert out.z.item() == pytest.approx(BETA * z, abs=1e-12)


@pytest.mark.parametrize("keep", [0.2, 0.4, 1.0])
def test_the_loss_is_softplus_of_the_selected_scores(keep):
    w, l, mask_w, mask_l = drawn()
    m = s.TopTokens(keep)(w, l, mask_w, mask_l, None)
    loss = preference_loss(w, l, beta=BETA, tokens_w=m[0], tokens_l=m[1]).loss
    wanted = torch.nn.functional.softplus(BETA * ((m[0] * -w).sum(1) + (m[1] * l).sum(1)))
    assert (loss - wanted).abs().max() < 1e-10
    check_kept(m[0], -w, mask_w.sum(1), keep), check_kept(m[1], l, mask_l.sum(1), keep)


@pytest.mark.parametrize("lever", [s.TopTokens(1.0), s.TopTokens(1.0, s.Random()), s.TopTokens(0.3, keep_rejected=1.0)])
def test_loss_and_gradient_see_the_mask_as_a_constant(lever):
    w, l, *masks = drawn()

    def graded(lever):
        theta = w.clone().requires_grad_(), l.clone().requires_grad_()
        m = lever(*theta, *masks, None)
        assert not any(x.requires_grad for x in m)
        loss = preference_loss(*theta, beta=BETA, tokens_w=m[0], tokens_l=m[1]).loss
        return torch.cat([loss.detach(), *(x.flatten() for x in torch.autograd.grad(loss.sum(), theta))])

    constant = lever(w, l, *masks, None)
    assert torch.equal(graded(lever), graded(lambda *given: constant))
    assert torch.equal(graded(lever), graded(lambda *given: [x.double() for x in masks])) == (lever.keep == 1.0)


# ---------------------------------------------------------------- the rule


@pytest.mark.parametrize("keep", KEEPS)
def test_the_share_is_rounded_up_exactly(keep):
    mask = length_mask(np.arange(1, 102))
    scores = torch.from_numpy(np.random.default_rng(0).random(mask.shape))
    wanted = [math.ceil(Fraction(str(keep)) * n) for n in range(1, 102)]
    assert s.top_share(scores, mask, keep).sum(1).tolist() == wanted
    assert s.top_share(scores.float(), mask, keep).sum(1).tolist() == wanted


def test_ties_go_to_the_earlier_token_and_where_all_tie_all_are_kept():
    assert kept([1, 2, 2, 2, 0], 0.4) == [1, 2] and kept([0, 1, 0, 0, 1], 0.6) == [0, 1, 4]
    assert kept([-1e-12, 1e-12, -1], 0.3) == [0], "the sign of a zero is no difference"
    assert [kept([0.7] * 11, keep) for keep in (*KEEPS, 0)] == [list(range(11))] * len(KEEPS) + [[]]


@pytest.mark.parametrize("dtype, noise, real", [(torch.float64, 1e-10, 1e-8), (torch.float32, 1e-6, 1e-4)])
def test_rounding_noise_is_a_tie_and_more_is_not(dtype, noise, real):
    row = lambda e: [1, 2 - e, 2, 2 + e, 0]
    assert kept(row(noise), 0.2, dtype) == [1] and kept(row(real), 0.2, dtype) == [3]
    assert kept([noise, 0, -noise], 0.3, dtype) == [0, 1, 2] and kept([0, real, 0], 0.3, dtype) == [1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_work(dtype):
    assert kept([0.1, 0.75, -0.3, 1.5, -60], 0.4, dtype) == [1, 3]
    assert kept([0.001, 0.0002, 0, 0.003, 0], 0.4, dtype) == [0, 3] and kept([0.1] * 4, 0.4, dtype) == [0, 1, 2, 3]
    w, l, *masks = drawn()
    m = s.TopTokens(0.4)(w.to(dtype), l.to(dtype), *masks, None)
    assert m[0].dtype == dtype and m[0].sum(1).tolist() == [-(-2 * int(n) // 5) for n in masks[0].sum(1)]


@pytest.mark.parametrize("garbage", [0.0, 1e300, math.inf, -math.inf, math.nan])
def test_padding_is_never_kept_and_never_read(garbage):
    w, _, mask, _ = drawn()
    scores = -w.abs() - 1  # below a padding of zeros
    scores[0] = -3.0  # a row whose tokens all tie
    for keep in (0.1, 0.4, 1.0):
        check_kept(s.top_share(scores.masked_fill(~mask, garbage), mask, keep), scores, mask.sum(1), keep)


def test_the_share_of_the_rejected_response_is_its_own():
    w, l, mask_w, mask_l = drawn()
    both = s.TopTokens(0.4)(w, l, mask_w, mask_l, None)
    for keep, wanted in ((0.0, torch.zeros_like(l)), (1.0, mask_l.double()), (0.4, both[1])):
        m = s.TopTokens(0.4, keep_rejected=keep)(w, l, mask_w, mask_l, None)
        assert torch.equal(m[0], both[0]) and torch.equal(m[1], wanted)


@pytest.mark.parametrize("control, key", [(s.Inverted, lambda x: -x), (s.Absolute, abs)])
def test_controls_turn_the_signed_score(control, key):
    values, rows, like = random_table(1), [2, 0], torch.zeros(1).double()
    (w, l), (offset_w, offset_l) = random_table(2).rows(rows, like), values.rows(rows, like)
    lengths = [[len(side[i]) for i in rows] for side in (values.chosen, values.rejected)]
    m = s.TopTokens(0.4, control(values))(w, l, *map(length_mask, lengths), rows)
    check_kept(m[0], key(offset_w - w), lengths[0], 0.4), check_kept(m[1], key(l - offset_l), lengths[1], 0.4)


def test_select_is_top_share_of_a_whole_table():
    scores = random_table(3)
    padded = scores.rows(range(3), torch.zeros(1).double())
    for keep in (0.0, *KEEPS, 1.0):
        for side, score in zip(SIDES, padded):
            mask = length_mask([len(x) for x in getattr(scores, side)])
            ours = np.concatenate(getattr(s.select(scores, keep), side))
            assert ours.tolist() == s.top_share(score, mask, keep)[mask].tolist()


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_outside_0_and_1_is_refused(share):
    for name, given in (("keep", dict(keep=share)), ("keep_rejected", dict(keep=0.4, keep_rejected=share))):
        with pytest.raises(ValueError, match=f"^{name}={share}: .* between 0 and 1"):
            s.TopTokens(**given)


# ---------------------------------------------------------------- in training


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
    return torch.stack([torch.cat([m.flatten() for m in step[2:]])[own] for step in seen]), seen, run


def test_all_tokens_train_dpo_bit_for_bit(reference, few):
    for lever in (s.TopTokens(1.0, s.Signed(few.offset)), s.TopTokens(1.0, s.Random()),
                  s.Weights(few.offset.map(np.ones_like))):  # fmt: skip
        run = align(reference, few.tokens, token_lever=lever, **SETTING)
        assert run.policy.hash == few.dpo.policy.hash != reference.hash and run.log.equals(few.dpo.log)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_first_step_keeps_every_token_and_later_masks_are_found_anew(reference, few, dtype):
    masks, seen, run = watch(s.TopTokens(0.1), reference.to(dtype), few.tokens)
    assert masks[0].all() and run.log.loss[0] == pytest.approx(math.log(2), abs=1e-6)
    assert not masks[1].all() and not torch.equal(masks[1], masks[2])
    for w, l, m_w, m_l in seen if dtype == "float64" else ():
        check_kept(m_w, -w, few.tokens.lengths_w, 0.1), check_kept(m_l, l, few.tokens.lengths_l, 0.1)


def test_fixed_masks_stay(reference, few):
    masks, _, run = watch(s.TopTokens(0.4, s.Fixed(few.offset)), reference, few.tokens)
    selected = s.select(few.offset, 0.4)
    assert (masks == torch.from_numpy(flat(selected))).all()
    assert align(reference, few.tokens, token_lever=s.Weights(selected), **SETTING).policy.hash == run.policy.hash


def test_random_masks_have_the_share_and_come_again(reference, few):
    masks, seen, run = watch(s.TopTokens(0.4, s.Random()), reference, few.tokens)
    assert len(masks.unique(dim=0)) == 3
    for step in seen:
        for m, lengths in zip(step[2:], (few.tokens.lengths_w, few.tokens.lengths_l)):
            assert m.sum(1).tolist() == [-(-2 * n // 5) for n in lengths]
    again, _, second = watch(s.TopTokens(0.4, s.Random()), reference, few.tokens)
    assert torch.equal(masks, again) and run.policy.hash == second.policy.hash
    assert not torch.equal(masks, watch(s.TopTokens(0.4, s.Random()), reference, few.tokens, seed=1)[0])


def test_random_masks_resume_bitwise(reference, few, fresh_cache, monkeypatch):
    setting = CACHED | dict(steps=5, save_every=2, token_lever=s.TopTokens(0.4, s.Random()))
    straight = align(reference, few.tokens, use_cache=False, **setting)
    real, calls = train.log_ratios, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(train, "log_ratios", interrupted)
    with pytest.raises(KeyboardInterrupt):
        align(reference, few.tokens, **setting)
    resumed = align(reference, few.tokens, **setting)
    assert len(calls) == 4 + 3, "it went on after step 2"
    assert resumed.policy.hash == straight.policy.hash and resumed.log.equals(straight.log)


def test_the_cache_tells_two_offsets_apart(reference, few, fresh_cache):
    run = lambda t: align(reference, few.tokens, token_lever=s.TopTokens(0.4, s.Signed(t)), **CACHED | {"steps": 2})
    one, two, again = (run(few.offset.map(f)) for f in (np.copy, np.negative, np.copy))
    assert (one.cached, two.cached, again.cached) == (False, False, True)
    assert one.policy.hash == again.policy.hash != two.policy.hash


def test_a_table_is_named_by_its_values():
    one, changed = random_table(0), random_table(0)
    changed.rejected[2][-1] += 1e-15
    others = [changed, s.TokenTable(one.rejected, one.chosen), random_table(0, ((9, 5, 1), (7, 2, 12)))]
    assert repr(one) == repr(one.map(np.copy)) and len({repr(t) for t in (one, *others, one.map(np.float32))}) == 5
    assert repr(one) in repr(s.TopTokens(0.4, s.Signed(one))) != repr(s.TopTokens(0.4, s.Inverted(one)))


# ---------------------------------------------------------------- score references and the oracle


def test_offset_is_the_difference_of_two_plain_forwards(reference, few):
    assert not flat(s.offset(reference, reference, few.tokens)).any() and np.abs(flat(few.offset)).max() > 1e-3

    def plain(policy, x, y):
        with torch.no_grad():
            logits = policy.model(torch.tensor([[*x, *y]])).logits[0, len(x) - 1 : -1]
        return logits.log_softmax(-1)[range(len(y)), y].numpy()

    for side in SIDES:
        x, y = few.tokens.prompts[7], getattr(few.tokens, side)[7]
        wanted = plain(few.dpo.policy, x, y) - plain(reference, x, y)
        assert getattr(few.offset, side)[7] == pytest.approx(wanted, abs=1e-9)


def test_the_oracles_against_all_responses(world, reference, few):
    grammar, first = reference.grammar, few.table.head(6)
    ref = evaluate.exact(reference, np.unique(first.prompt_id))
    best = s.optimum_offset(grammar, ref, first, reward=world.reward, beta=BETA)
    advantage, choice = s.advantages(grammar, ref, first, values=world.reward), s.branching(grammar, first)
    for i, row in first.iterrows():
        replies = [grammar.response(row.prompt_id, y)[0].tolist() for y in range(len(world.responses))]
        p, r = np.exp(ref.logp[list(ref.prompts).index(row.prompt_id)]), world.reward[row.prompt_id]
        for side, sign, y in zip(SIDES, (1, -1), (row.y_0, row.y_1) if row.chosen == 0 else (row.y_1, row.y_0)):
            offset, value, free = (getattr(t, side)[i] for t in (best, advantage, choice))
            shared = np.array([[x[:t] == replies[y][:t] for t in range(len(replies[y]) + 1)] for x in replies])
            mass, star, total = (weight @ shared for weight in (p, p * np.exp(r / BETA), p * r))
            assert offset == pytest.approx(np.log(star[1:] / star[:-1]) - np.log(mass[1:] / mass[:-1]), abs=1e-9)
            assert offset.sum() == pytest.approx(r[y] / BETA - logsumexp(np.log(p) + r / BETA), abs=1e-9)
            assert value == pytest.approx(sign * np.diff(total / mass), abs=1e-9)
            assert value.sum() == pytest.approx(sign * (r[y] - p @ r), abs=1e-9)
            assert free.tolist() == (shared[:, 1:].sum(0) < shared[:, :-1].sum(0)).tolist()
            assert np.abs(value[free == 0]).max() < 1e-12, "a forced token makes nothing"


def test_auc_is_scikit_learns():
    g = np.random.default_rng(0)
    for ties in (1, 10):
        score, positive = g.integers(0, 100, 500) // ties / 7, g.random(500) < 0.2
        assert s.auc(score, positive) == pytest.approx(roc_auc_score(positive, score), abs=1e-12)
    assert s.auc([1, 1 + 1e-12], [False, True]) == 0.5 and s.auc([1, 2], [0, 1]) == 1
    assert math.isnan(s.auc([1, 2], [1, 1])) and math.isnan(s.auc([1, 2], [0, 0]))


# ---------------------------------------------------------------- relatives


def test_sepo_is_reference_free_and_length_normalised(reference, few):
    moved = align(reference, few.tokens, **SETTING | {"steps": 2, "seed": 1}).policy
    lever, table = s.sepo(reference, few.dpo.policy, few.tokens, few.table, beta=0.7)
    tokens, every = pairs.tokenize(table, reference), np.arange(len(table))
    w, l, _ = log_ratios(LogProbs(moved), tokens, every, moved, reference_logprobs(reference, tokens))
    m = lever(w, l, *(length_mask(n) for n in (tokens.lengths_w, tokens.lengths_l)), every)
    z = preference_loss(w, l, beta=0.7, margin=torch.tensor(tokens.margin), tokens_w=m[0], tokens_l=m[1]).z
    theta, oracle, ref = (reference_logprobs(p, tokens) for p in (moved, few.dpo.policy, reference))

    def mean(side, sign):
        """Mean log-prob of the tokens that the oracle's log-ratio chooses."""
        numbers = zip(*(getattr(t, side) for t in (theta, oracle, ref)))
        return np.array([t[by_hand(sign * (o - r), 0.3)].mean() for t, o, r in numbers])

    assert z.tolist() == pytest.approx(0.7 * (mean("chosen", 1) - mean("rejected", -1)), abs=1e-9)


def test_tis_dpo_weighs_within_its_clamp(reference, few):
    assert (flat(s.tis_dpo(reference, reference, few.tokens).values) == 1).all()
    values = s.tis_dpo(few.dpo.policy, reference, few.tokens, low=-0.001, high=0.002).values
    assert flat(values).min() == pytest.approx(np.exp(-0.001)) and flat(values).max() == pytest.approx(np.exp(0.002))
    for side, sign in zip(SIDES, (1, -1)):
        ours, ratio = (np.concatenate(getattr(t, side)) for t in (values, few.offset))
        assert np.log(ours) == pytest.approx(np.clip(sign * ratio, -0.001, 0.002), abs=1e-12)


def test_imitation_of_all_chosen_tokens_is_supervised_fine_tuning(reference, few):
    lever, weights = (
        s.TopTokens(1.0, keep_rejected=0.0),
        lambda run: [p.detach() for p in run.policy.model.parameters()],
    )
    ours = align(reference, few.tokens, token_lever=lever, link=s.imitation, **SETTING)
    setting = {name: value for name, value in SETTING.items() if name != "beta"}
    sft = train.fine_tune(reference, few.tokens.prompts, few.tokens.chosen, **setting)
    assert ours.log.grad_norm.tolist() == pytest.approx(sft.log.grad_norm.tolist(), rel=1e-9)
    assert max((a - b).abs().max() for a, b in zip(weights(ours), weights(sft))) < 1e-9
