"""Notebook 07 on a made model: complete, with the quantities of every method on both splits; and what is refused."""

import pytest
from helpers.made_models import model_folder

from safealign_utils.real import fetched
from safealign_utils.runs import cli, runner

BOOK = "07_a_real_model"
TINY = dict(
    dtype="float32",
    pairs=56,
    steps=2,
    batch_size=1,
    learning_rate=1e-3,
    rounds=1,
    round_steps=1,
    eval_size=3,
)
METHODS = ("dpo", "dpo_soft", "safedpo", "cdpo", "selective", "dog_d", "random", "ref")


def given(**changes):
    return [(name, str(value)) for name, value in (TINY | changes).items()]


@pytest.mark.parametrize("size", [dict(), dict(pairs=28, eval_size=1)], ids=["two", "one"])
def test_it_runs_on_a_made_model(size, tmp_path, fresh_cache):
    """On one prompt too."""
    model = model_folder(tmp_path / "model", "llama")
    _, record, ran = runner.run(BOOK, given(model=model, **size), out=tmp_path / "out")
    assert ran
    for split in ("train", "heldout"):
        for method in METHODS:
            for quantity in ("reward", "unsafe", "kl_ref", "kl_opt", "tv_opt", "log_mass"):
                assert f"{method}[split={split}].{quantity}" in record["metrics"]
        assert record["metrics"][f"ref[split={split}].kl_ref"] == 0
    judged = {claim["id"].partition("[")[0] for claim in record["claims"]}
    assert len(judged) == 8 and all(id.startswith("real_model.") for id in judged)


def test_a_model_from_scratch_is_refused(tmp_path, capsys):
    assert cli.main(["run", BOOK, "-p", "model=scratch", "--out", str(tmp_path)]) == 2
    assert "model='scratch': this notebook needs a pretrained model" in capsys.readouterr().err


def test_without_the_model_the_command_is_named_and_reproduce_goes_on(fresh_cache, capsys):
    assert cli.main(["run", BOOK]) == 2
    assert "run `safealign fetch smollm2`" in capsys.readouterr().err
    paths = cli._runnable()
    assert BOOK not in [path.stem for path in paths]
    assert f"{BOOK}: skipped, its model is not there" in capsys.readouterr().out


def test_with_the_model_reproduce_runs_it(fresh_cache, monkeypatch):
    monkeypatch.setattr(fetched, "is_there", lambda name: True)
    assert BOOK in [path.stem for path in cli._runnable()]


@pytest.mark.parametrize("name", ["numbered", "comparable"])
def test_it_is_not_among_the_comparable(name):
    assert (BOOK in [path.stem for path in getattr(runner, name)()]) == (name == "numbered")
