"""A linter for the committed notebooks: what would make them pass for the wrong reason, or read badly."""

import ast
import json
import re
import statistics

import pytest
from helpers import ROOT

from safealign_utils.study import records
from safealign_utils.study import settings as parameters

NUMBERED = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
ALL = NUMBERED + sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
MOST = {  # parameters beyond the common ones: a notebook of the world has few
    "00_the_world": 0,
    "01_dpo_basics": 4,
    "02_safedpo": 4,
    "03_cdpo_dual_gradient_descent": 10,
    "04_selective_dpo_token_scoring": 8,
    "05_dog_selection": 10,
    "06_one_loss_four_levers": 7,
}
COMMON = {
    "profile": "str",
    "seed": "int",
    "seeds": "int",
    "beta": "float",
    "steps": "int",
    "pairs": "int",
    "batch_size": "int",
    "learning_rate": "float",
    "dtype": "str",
    "device": "str",
    "out_dir": "str",
}


def problems(book):
    """What is wrong with a notebook (its JSON), as a list of words."""
    out, code = [], [c for c in book["cells"] if c["cell_type"] == "code"]
    if [c["execution_count"] for c in code] != list(range(1, len(code) + 1)):
        out.append("execution counts are not 1..n: nbval would not compare every cell")
    if book["metadata"].get("kernelspec", {}).get("name") != "python3":
        out.append("the kernel is not python3")
    lengths = [
        len([line for line in "".join(c["source"]).splitlines() if line.strip()]) for c in code
    ]
    tagged = ["parameters" in c["metadata"].get("tags", []) for c in code]
    own = [n for n, is_parameters in zip(lengths, tagged) if not is_parameters]
    if statistics.median(own) > 8 or max(own) > 30 or sum(n > 15 for n in own) > len(own) / 10:
        out.append(
            f"code cells are too long: median {statistics.median(lengths)}, longest {max(lengths)}"
        )
    for c in code:
        source = "".join(c["source"])
        if wide := [line for line in source.splitlines() if len(line) > 88]:
            out.append(f"a line of {len(wide[0])} columns: {wide[0]}")
        if re.search(r"^# (world|real text) only", source, re.M):
            out.append("a comment that changes what runs")
        if alias := re.search(r"^(?:from .* )?import \w+ as ([A-Z])$", source, re.M):
            out.append(f"a module called {alias[1]}")
        if source.rstrip().endswith(";"):
            out.append("a cell ends in a semicolon")
        for output in c["outputs"]:
            text = json.dumps(output.get("text", "")) + json.dumps(
                output.get("data", {}).get("text/plain", "")
            )
            if output.get("name") == "stderr" or output["output_type"] == "error":
                out.append("stderr or an error in the outputs")
            if re.search(r"/(home|root|tmp|work|Users)/", text):
                out.append("an absolute path in the outputs")
            if re.search(r"it/s|s/it|\d%\|", text):
                out.append("a progress bar in the outputs")
        if "skip" in str(c["metadata"]).lower() or "NBVAL" in source:
            out.append("a cell that nbval would skip")
    return out


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_committed_notebooks_are_clean(path):
    assert problems(json.loads(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", NUMBERED, ids=lambda p: p.stem)
def test_parameters_are_known_annotated_and_commented(path):
    cell = parameters.read_cell(path)
    assert {name: cell[name][0] for name in COMMON} == COMMON
    if path.stem in MOST:
        assert len(cell) == len(COMMON) + MOST[path.stem]
    for name, (kind, default) in cell.items():
        assert parameters.kind(name) == kind, name
        assert type(default).__name__ == kind, f"{name}: the default is no {kind}"
    import papermill

    assert set(papermill.inspect_notebook(str(path))) == set(cell), (
        "papermill itself reads every parameter"
    )
    book = json.loads(path.read_text(encoding="utf-8"))
    tagged = next(c for c in book["cells"] if "parameters" in c["metadata"].get("tags", []))
    assert all("  # " in line for line in "".join(tagged["source"]).splitlines()), (
        "each parameter says its unit or range"
    )
    assert cell["profile"][1] == "small" and cell["out_dir"][1] == ""


@pytest.mark.parametrize("path", NUMBERED, ids=lambda p: p.stem)
def test_the_stations_are_there(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    text = ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "markdown"]
    assert (
        text[0].startswith(f"# {path.stem[:2]} · ")
        and "After this you can" in text[0]
        and "| profile |" in text[0]
    )
    for heading in ("## Checks and claims", "## Exercises", "## What you should have seen"):
        assert any(heading in t for t in text), heading
    last = "".join([c for c in book["cells"] if c["cell_type"] == "code"][-1]["source"])
    assert last == "study.finish()"
    for c in book["cells"]:
        if c["cell_type"] == "code":
            ast.parse("".join(c["source"]))


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda code: code[1].update(execution_count=None), "execution counts"),
        (lambda code: code[1].update(execution_count=7), "execution counts"),
        (
            lambda code: code[1]["outputs"].append(
                {"output_type": "stream", "name": "stderr", "text": "warn"}
            ),
            "stderr",
        ),
        (
            lambda code: code[1]["outputs"].append(
                {"output_type": "stream", "name": "stdout", "text": "/home/me/x"}
            ),
            "path",
        ),
        (
            lambda code: code[1]["outputs"].append(
                {"output_type": "stream", "name": "stdout", "text": "3.1it/s"}
            ),
            "progress",
        ),
        (lambda code: code[1].update(source="plt.plot(x);"), "semicolon"),
        (lambda code: code[1].update(source="# world only\nx = 1"), "changes what runs"),
        (lambda code: code[1].update(source="x = " + "1 + " * 30 + "1"), "columns"),
        (lambda code: code[1].update(source="from a import b as S"), "a module called S"),
        (lambda code: code[1].update(source="# NBVAL_SKIP\nx = 1"), "skip"),
        (
            lambda code: code[1].update(source="\n".join(f"x{i} = {i}" for i in range(41))),
            "too long",
        ),
    ],
)
def test_the_linter_sees_what_it_is_for(spoil, words):
    book = json.loads(NUMBERED[0].read_text(encoding="utf-8"))
    spoil([c for c in book["cells"] if c["cell_type"] == "code"])
    assert any(words in p for p in problems(book))


def test_regenerating_is_the_only_writer():
    """No run leaves anything in notebooks/: only sources, profiles, solutions, and the guide."""
    kinds = {
        p.suffix
        for p in (ROOT / "notebooks").rglob("*")
        if p.is_file() and not {".ipynb_checkpoints", "tables"} & {*p.parts}
        if p != ROOT / "notebooks" / "README.md"
    }
    assert kinds <= {".ipynb", ".yaml", ".toml"}


@pytest.mark.parametrize("path", NUMBERED, ids=lambda p: p.stem)
def test_committed_tables_are_there_and_no_stub(path):
    """What a notebook draws from notebooks/tables is a measured table, and its text has no gap left."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells)
    assert not re.search(r"[A-Z]{4,}_READING|TODO|FIXME", text)
    for name in re.findall(r'committed\("([\w.]+)"\)', text):
        table = records.committed(name)
        assert len(table) > 3 and table.astype(str).nunique().max() > len(table) / 2, name
