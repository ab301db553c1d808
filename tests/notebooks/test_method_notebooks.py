"""Notebooks 02 to 05: what they refuse, unusual but legal values, and levers that combine."""

import json
from dataclasses import dataclass, replace

import pytest
from helpers import ROOT

from safealign_utils import pairs, train
from safealign_utils.methods import cdpo, safedpo
from safealign_utils.runs import cli, runner

DPO = "02_safedpo"
DUAL = "03_cdpo_dual_gradient_descent"
TOKENS = "04_selective_dpo_token_scoring"
PAIRS = "05_dog_selection"


def refused(capsys, tmp_path, *words):
    """The message of a refused run: one line, exit status 2, nothing written."""
    status = cli.main(["run", *words, "--out", str(tmp_path / "out")])
    err = capsys.readouterr().err
    assert status == 2 and err.count("\n") == 1 and not (tmp_path / "out").exists()
    return err


@pytest.mark.parametrize(
    "book, given, words",
    [
        (DUAL, "cost_limit=-1.65", ["cost_limit=-1.65", "lowest attainable E[c] is -1.650000"]),
        (DUAL, "cost_limit=-7", ["cost_limit=-7", "-1.650000"]),
        (DUAL, "cost_limit=nan", ["cost_limit=nan", "finite"]),
        (DUAL, "clipped_limit=0", ["clipped_limit=0.0", "above 0"]),
        (DUAL, "relabel=argmin", ["relabel='argmin'", "coin, argmax, soft"]),
        (DUAL, "dual_lr=0", ["dual_lr=0.0", "above 0"]),
        (DUAL, "rounds=-1", ["rounds=-1"]),
        (DUAL, "fixed_lambda=-1", ["fixed_lambda=-1.0", "0 or above"]),
        (DUAL, "cost_samples=0.5", ["cost_samples='0.5'", "a whole number"]),
        (DUAL, "kl_coeff=-1", ["kl_coeff=-1.0", "0 or above"]),
        (DPO, "delta=-1", ["delta=-1.0", "0 or above"]),
        (DPO, "deltas=[5,-1]", ["deltas", "0 or above"]),
        (DPO, "dleta=5", ["dleta", "did you mean 'delta'"]),
        (DPO, "recipe_factor=-1", ["recipe_factor=-1.0"]),
        (TOKENS, "keep=0", ["keep=0.0", "above 0, up to 1"]),
        (TOKENS, "keep=1.1", ["keep=1.1", "above 0, up to 1"]),
        (TOKENS, "keeps=0.4,40", ["keeps=[0.4, 40.0]", "above 0, up to 1"]),
        (
            TOKENS,
            "score_reference=best",
            ["score_reference='best'", "weaker, equal, aligned, larger, optimum"],
        ),
        (
            TOKENS,
            "token_rules=signed,magic",
            ["token_rules=['signed', 'magic']", "names among signed"],
        ),
        (TOKENS, "label_noise=0.6", ["label_noise=0.6", "from 0 to 0.5"]),
        (TOKENS, "world_size=huge", ["world_size='huge'", "default, large"]),
        (PAIRS, "budget=0", ["budget=0.0", "above 0, up to 1"]),
        (PAIRS, "budget=11", ["budget=11.0", "above 0, up to 1"]),
        (PAIRS, "layer=3", ["layer=3", "0 to 2"]),
        (PAIRS, "anchor_rank=65", ["anchor_rank=65", "64"]),
        (PAIRS, "residual_rank=0", ["residual_rank=0", "at least 1"]),
        (PAIRS, "ridge=0", ["ridge=0.0", "above 0"]),
        (PAIRS, "pooling=max", ["pooling='max'", "mean, last"]),
        (PAIRS, "pool=small", ["pool='small'", "near, exact, spread"]),
        (PAIRS, "pairs=100", ["pairs=100", "at least 160"]),
        (PAIRS, "selections=dog,cat", ["selections=['dog', 'cat']", "names among"]),
        (PAIRS, "data=pairs.jsonl", ["has no parameter data", "08_your_own_pairs have"]),
    ],
)
def test_refused_values(capsys, tmp_path, book, given, words):
    err = refused(capsys, tmp_path, book, "-p", given)
    assert all(w in err for w in words), err


SHORT = dict(pairs=40, steps=2, dtype="float32")


def run(book, out, **given):
    sampled = dict(ppo_iterations=1) if book in (DPO, DUAL) else {}
    return runner.run(
        book, [(k, str(v)) for k, v in {**SHORT, **sampled, **given}.items()], out=out
    )[1]


def test_safedpo_where_no_multiplier_is_needed(tmp_path):
    """At beta 5 DPO's optimum meets the limit by itself: lambda* = 0, and every row is still there."""
    record = run(DPO, tmp_path, beta=5, delta=3, deltas="4", recipe_factor=2)
    assert record["status"] == "complete" and record["parameters"]["deltas"] == [4.0]
    for method in (
        "ref",
        "dpo",
        "dpo_harmless",
        "dpo_safebetter",
        "safedpo",
        "sacpo",
        "psacpo",
        "mocan",
        "pecan",
        "modpo",
        "bfpo",
        "bso",
        "bso[margin=5]",
        "ppo_lagrangian",
        "safedpo_soft",
        "safedpo_finite",
        "safedpo_plain",
    ):
        assert f"{method}.reward" in record["metrics"], method
    for name in (
        "safedpo[delta=4].unsafe",
        "safedpo_finite[steps=4].tv_opt",
        "safedpo[split=unseen_category].unsafe",
        "safedpo.tv_opt",
        "exact.safedpo.reward",
    ):
        assert name in record["metrics"], name


def test_cdpo_with_a_slack_limit_and_coins(tmp_path):
    """And E[c] from samples, another KL coefficient for PPO, and no multiplier at all."""
    given = dict(cost_limit=3, relabel="coin", rounds=2, round_steps=2, cost_samples=9)
    record = run(DUAL, tmp_path, **given, kl_coeff=0.01, fixed_lambda=0, clipped_limit=0.2)
    metrics = record["metrics"]
    assert (
        metrics["cdpo.lambda"] == 0
        and metrics["exact.lambda_star"] == 0
        and metrics["cdpo.train_cost"] < 3
    )
    assert record["timings"]["ppo_lagrangian_over_cdpo"] > 0
    assert metrics["fixed_lambda[lambda=0].kl_ref"] == pytest.approx(
        metrics["mocan_soft.kl_ref"], abs=1
    )
    for name in ("ppo_lagrangian[kl_coeff=0.01].cost", "cdpo_clipped[cost_limit=0.2].kl_opt"):
        assert name in metrics, name
    assert not [c for c in record["claims"] if c["id"].startswith("fixed_lambda")]


def test_selective_with_every_share_and_reference(tmp_path):
    """A large share, no penalty, noisy labels, a score reference that is not the default: every row is there."""
    record = run(
        TOKENS,
        tmp_path,
        keep=1,
        keeps="1,0.1",
        score_reference="equal",
        score_references="optimum",
        leak_weight=0,
        label_noise=0.5,
        token_rules="signed,random,beta,oracle,averaged",
    )
    metrics = record["metrics"]
    for name in (
        "dpo.kl_opt",
        "selective.kl_opt",
        "selective[keep=0.1].kl_opt",
        "random_tokens.leak",
        "averaged.reward",
        "oracle_tokens[keep=0.1].frontier_gap",
        "selective[score_reference=optimum,keep=0.1].own",
    ):
        assert name in metrics, name
    assert (
        metrics["selective.kl_opt"] == metrics["dpo.kl_opt"] == metrics["oracle_tokens.kl_opt"]
    ), "a share of 100 % is DPO"


def test_dog_where_everything_fits_the_budget(tmp_path):
    """Exact copies and a budget above what is left: every rule takes all, and trains the same policy."""
    record = run(
        PAIRS,
        tmp_path,
        pairs=200,
        pool="exact",
        budget=0.4,
        budgets="0.05,1",
        layer=1,
        pooling="last",
        anchor_rank=1,
        residual_rank=2,
        ridge=0.1,
        selections="random,dog,dog_d,log_det,stratified",
    )
    metrics = record["metrics"]
    assert metrics["data.different"] < 0.3 * metrics["data.trainable"]
    same = {
        metrics[f"{m}.unsafe"] for m in ("random_pairs", "dog", "dog_d", "log_det", "stratified")
    }
    assert (
        len(same) == 1 and "log_det[budget=0.05].worst" in metrics and "dog_d.recovered" in metrics
    )


@dataclass(frozen=True)
class FirstHalf:
    """A token lever for the test: the first half of every response."""

    def __call__(self, logratio_w, logratio_l, mask_w, mask_l, rows):
        half = lambda m: (m.cumsum(1) <= m.sum(1, keepdim=True) / 2).to(logratio_w)
        return half(mask_w), half(mask_l)


def test_levers_combine(world, reference):
    """Fewer pairs, r - lambda c, T with a margin and half the tokens: one expression, and each lever matters."""
    reference = replace(reference, constrained=True)
    chosen = pairs.label(world.pairs(48, seed=5)).iloc[::2].reset_index(drop=True)
    hard = cdpo.relabel(chosen, 0.5, by="coin")
    setting = dict(beta=0.5, steps=3, batch_size=16, learning_rate=3e-3, seed=0)
    fit = lambda table, **lever: (
        train.align(reference, pairs.tokenize(table, reference), **setting, **lever).policy.hash
    )
    everything = fit(safedpo.safedpo(hard, delta=2.0), token_lever=FirstHalf())
    others = [
        fit(safedpo.safedpo(hard, delta=2.0)),
        fit(safedpo.safedpo(hard), token_lever=FirstHalf()),
        fit(hard, token_lever=FirstHalf()),
        fit(safedpo.safedpo(chosen, delta=2.0), token_lever=FirstHalf()),
    ]
    assert len({everything, *others}) == 5


def test_the_notebooks_name_what_they_leave_open():
    """The papers' tables stand in cells of their own, with what is not stated."""
    for name in (DPO, DUAL, TOKENS, PAIRS):
        book = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
        text = ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "markdown"]
        (paper,) = [t for t in text if "## What the paper reports" in t]
        assert "not stated" in paper.lower() and (
            "cannot be compared" in paper or "no column is shown" in paper
        )
