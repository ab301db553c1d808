"""Cells for one kind of data, and a profile that serves several notebooks."""

import nbformat
from helpers import ROOT
from helpers.toy import CELL, notebook

from safealign_utils.runs import runner
from safealign_utils.study import cells
from safealign_utils.study import settings as parameters

BODY = """from safealign_utils.study import cells
cells.pass_over(cells.TEXT if data == "world" else cells.WORLD)"""
WRITE = """if out_dir:
    from safealign_utils.study import records
    records.write(out_dir, notebook="toy", run_id="", parameters={"profile": profile}, metrics={}, timings={},
                  claims=[], tables=[], figures=[], provenance={})"""


def said(folder):
    book = nbformat.read(folder / "toy.ipynb", as_version=4)
    return [o.text.strip() for c in book.cells if c.cell_type == "code" for o in c.outputs]


def test_marked_cells_are_passed_over(tmp_path):
    """In the world those for real text, and nothing is left of it in the next run."""
    marked = [cells.WORLD + "\nprint('the world')", cells.TEXT + "\nprint('text')", "print('both')"]
    path = notebook(tmp_path / "toy.ipynb", CELL, BODY, *marked, WRITE)
    folder = runner.run(path, out=tmp_path / "out")[0]
    assert said(folder) == ["the world", cells.SAID[cells.TEXT], "both"]
    plain = notebook(tmp_path / "toy.ipynb", CELL, *marked, WRITE)
    folder = runner.run(plain, out=tmp_path / "plain")[0]
    assert said(folder) == ["the world", "text", "both"]


def test_on_real_text_the_other_ones_are(tmp_path):
    path = notebook(
        tmp_path / "toy.ipynb",
        CELL,
        BODY.replace('data == "world"', "False"),
        cells.WORLD + "\n1 / 0",
        WRITE,
    )
    assert said(runner.run(path, out=tmp_path / "out")[0]) == [cells.SAID[cells.WORLD]]


def test_a_profile_may_hold_parameters_of_other_notebooks(capsys):
    """They are named on stderr; a name that no notebook has is refused."""
    file = ROOT / "notebooks" / "profiles" / "qwen2.5_0.5b_pku30k.yaml"
    books = {
        name: parameters.read_cell(runner.find(name))
        for name in ("02_safedpo", "03_cdpo_dual_gradient_descent")
    }
    settings = {
        name: parameters.resolve(parameters.collect(cell, [], [file]), name)
        for name, cell in books.items()
    }
    assert settings["02_safedpo"]["delta"] == 10.0 and "cost_limit" not in settings["02_safedpo"]
    assert settings["03_cdpo_dual_gradient_descent"]["cost_limit"] == 0.0
    err = capsys.readouterr().err
    assert "left out, as other notebooks have them: cost_limit, dual_lr, rounds, round_steps" in err


def test_every_profile_of_real_models_is_accepted(capsys):
    """Names, types and ranges; what they say of the papers' setting."""
    for file in sorted((ROOT / "notebooks" / "profiles").glob("*_pku30k.yaml")):
        for name in ("02_safedpo", "03_cdpo_dual_gradient_descent"):
            given = parameters.resolve(
                parameters.collect(parameters.read_cell(runner.find(name)), [], [file]), name
            )
            assert (given["beta"], given["learning_rate"], given["dtype"]) == (
                0.1,
                1e-6,
                "bfloat16",
            )
            assert 2.9 < given["steps"] * given["batch_size"] / 26_900 < 3.1, "three epochs"
    capsys.readouterr()
