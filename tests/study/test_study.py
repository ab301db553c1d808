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
    "values, limit, verdict, found",
    [
        (
            [-0.25],
            0.0,
            "holds",
            "full runs: -0.0010, -0.0110 to 0.0100, n = 8 (seeds 5 to 12)\n    this page: -0.2500\n",
        ),
        ([-0.25], 0.5, "undecided", "-0.2500, n = 1\n"),
        ([-0.26, -0.25, -0.24], 0.0, "does not hold", "-0.2500, -0.2748 to -0.2252, n = 3, "),
    ],
)
def test_what_a_claim_prints(notebook, capsys, values, limit, verdict, found):
    notebook.claim("cdpo.cost", values, cost_limit=limit)
    said = capsys.readouterr().out
    first, source, numbers = said.split("\n    ", 2)
    assert first == f"[{verdict}] cdpo.cost[cost_limit={limit:g}]: {BAR}"
    assert numbers.startswith(found) and source.endswith(claims.ledger()["cdpo.cost"].says)
    (judged,) = notebook.claims
    assert judged["n"] == len(values), "the record has this run's own verdict"
    assert judged["verdict"] == ("undecided" if len(values) == 1 else "does_not_hold")


def test_real_pairs_know_no_committed_verdicts():
    assert study.Notebook.judged_before == {}
