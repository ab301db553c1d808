"""notebooks/README.md: links lead somewhere, functions exist, seconds and exercises are those of the notebooks."""

import importlib
import json
import re

import pytest
from helpers import ROOT

from safealign_utils.study import exercises

GUIDE = ROOT / "notebooks" / "README.md"
TEXT = GUIDE.read_text(encoding="utf-8")
CODE = re.findall(r"`([^`\n]+)`", TEXT)
MODULES = "train pairs evaluate".split()
METHODS = "safedpo cdpo baselines ipo selective token_controls dog pair_controls ppo".split()


def first_cell(number):
    """The first cell of a notebook, by its number."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    return "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)", TEXT))))
def test_a_link_of_the_guide_leads_somewhere(link):
    assert link.startswith("https://arxiv.org/abs/") or (GUIDE.parent / link).exists()


def test_every_function_that_the_guide_names_is_there():
    """`module.function` of the package; a module of `methods/` stands without its folder."""
    found = [name.split(".") for name in CODE if re.fullmatch(r"[a-z_]+\.\w+", name)]
    found = [(m, f) for m, f in found if m in MODULES + METHODS and f != "py"]
    assert len(found) > 25 and {m for m, _ in found} == {*MODULES, *METHODS}
    for module, function in found:
        folder = "methods." if module in METHODS else ""
        module = importlib.import_module(f"safealign_utils.{folder}{module}")
        assert callable(getattr(module, function)), function


def test_the_plan_has_the_seconds_of_the_notebooks():
    plan = re.findall(r"^\| \d+ to \d+ \| (\d\d), (\d+) s", TEXT, re.M)
    home = re.findall(r"\[(\d\d)\]\([^)]*\) \((\d+) s\)", TEXT)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first = re.findall(r"^\| \[(\d\d) · [^|]*\|[^|]*\| (\d+) s \|$", readme, re.M)
    assert len(plan) == 5 and len(home) == 2 and len(first) == 7
    for number, seconds in plan + home + first:
        stated = re.search(r"^\| `small` \| about (\d+)", first_cell(number), re.M)[1]
        assert seconds == stated, f"notebook {number}"


def test_the_plan_fills_two_hours_without_a_gap():
    ends = re.findall(r"^\| (\d+) to (\d+) \|", TEXT, re.M)
    assert ends[0][0] == "0" and ends[-1][1] == "120"
    assert [end for _, end in ends[:-1]] == [start for start, _ in ends[1:]]


def test_a_term_has_one_entry_and_an_exercise_that_is_named_exists():
    glossary = TEXT.split("## Glossary")[1].split("### Margin")[0]
    terms = re.findall(r"^\| ([^|]+) \|", glossary, re.M)[1:]
    assert len(terms) > 40 and len(terms) == len(set(terms))
    assert set(re.findall(r'exercises\.hint\("(\w+)"', TEXT)) <= set(exercises.EXERCISES)
    columns = [
        len(re.findall(r"(?<!\\)\|", row)) for row in glossary.splitlines() if row[:1] == "|"
    ]
    assert set(columns) == {4}, "a bar inside a cell is written \\|"
