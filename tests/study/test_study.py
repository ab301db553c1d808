"""What a claim prints: its own verdict, or with one seed the committed one beside its own value."""

import pytest

from safealign_utils.study import claims, study

BAR = claims.ledger()["cdpo.cost"].bar
KNOWN = {
    "cdpo.cost[cost_limit=0]": dict(
        verdict="holds", value=-0.001, low=-0.011, high=0.010, n=8, seeds="seeds 5 to 12"
    )
}


@pytest.fixture
def notebook():
    """A notebook's claims, without its data."""
    out = object.__new__(study.Notebook)
    out.claims, out.judged_before = [], KNOWN
    return out


@pytest.mark.parametrize(
    "values, limit, wanted",
    [
        (
            [-0.25],
            0.0,
            "[holds] cdpo.cost[cost_limit=0]: -0.0010, -0.0110 to 0.0100, n = 8 "
            f"(full, seeds 5 to 12); here, one seed: -0.2500; the rule: {BAR}",
        ),
        ([-0.25], 0.5, f"[undecided] cdpo.cost[cost_limit=0.5]: -0.2500, n = 1; the rule: {BAR}"),
        ([-0.26, -0.25, -0.24], 0.0, "[does not hold] cdpo.cost[cost_limit=0]: -0.2500, "),
    ],
)
def test_what_a_claim_prints(notebook, capsys, values, limit, wanted):
    notebook.claim("cdpo.cost", values, cost_limit=limit)
    assert capsys.readouterr().out.startswith(wanted)
    (judged,) = notebook.claims
    assert judged["n"] == len(values), "the record has this run's own verdict"
    assert judged["verdict"] == ("undecided" if len(values) == 1 else "does_not_hold")


def test_real_pairs_know_no_committed_verdicts():
    assert study.Notebook.judged_before == {}
