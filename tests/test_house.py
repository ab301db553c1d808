"""The house: imports point down and never in a circle; functions stay readable; one way to do a thing."""

import ast
import re
import subprocess
import sys

import pytest
from helpers import ROOT

PACKAGE = ROOT / "safealign_utils"
# From the ground up: a module imports from its own row or from rows before it.
ROWS = (
    ("engine",),
    ("loss", "packing", "templates", "intervals"),
    ("world",),
    ("tokens",),
    ("pairs", "logprobs"),
    ("policy",),
    ("sampling", "evaluate", "train"),
    ("references",),
    ("methods", "figures"),
    ("real",),
    ("study",),
    ("runs",),
)
ROW = {name: number for number, row in enumerate(ROWS) for name in row}
MODULES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts): file
    for file in PACKAGE.rglob("*.py")
}
LONGEST, MOST_PARAMETERS = 40, 8


def imports(module):
    """Modules of the package that one imports, anywhere in its source."""
    here = module.split(".")[:-1]
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = here[: len(here) - node.level + 1] + (node.module or "").split(".")
        elif (node.module or "").split(".")[0] == PACKAGE.name:
            base = node.module.split(".")[1:]
        else:
            continue
        base = [part for part in base if part]
        for alias in node.names:
            full = ".".join([*base, alias.name])
            yield full if full in MODULES else ".".join(base) or "__init__"


ARROWS = {module: set(imports(module)) - {"__init__"} for module in MODULES}


def test_every_arrow_points_down():
    rooms = {module.split(".")[0] for module in MODULES} - {"__init__"}
    assert rooms == set(ROW), "a new room has no place in the order"
    wrong = [
        f"{module} -> {other}"
        for module, others in ARROWS.items()
        for other in others
        if module != "__init__" and ROW[other.split(".")[0]] > ROW[module.split(".")[0]]
    ]
    assert wrong == []
    drawn = [m for m, others in ARROWS.items() if m.startswith("figures.") and others]
    for module in drawn:
        assert {o.split(".")[0] for o in ARROWS[module]} <= {"figures", "intervals"}, module


def test_no_circle():
    left = {module: set(others) for module, others in ARROWS.items()}
    while left:
        free = [
            m for m, others in left.items() if not (others - {m, m + ".__init__"}) & left.keys()
        ]
        assert free, f"these import one another: {sorted(left)}"
        for module in free:
            del left[module]


def functions():
    for name, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield f"{name}.{node.name}", node


def test_functions_are_short_and_take_few_parameters():
    long, many = [], []
    for name, node in functions():
        args = node.args
        count = len(args.posonlyargs + args.args + args.kwonlyargs)
        count -= bool(args.args) and args.args[0].arg in ("self", "cls")
        if node.end_lineno - node.lineno + 1 > LONGEST:
            long.append(name)
        if count > MOST_PARAMETERS:
            many.append(name)
    assert (long, many) == ([], [])


def test_ruff_finds_nothing():
    pytest.importorskip("ruff", reason="ruff is not installed")
    ruff = [sys.executable, "-m", "ruff"]
    for words in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [*ruff, *words, "safealign_utils", "tests"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:]


def test_nothing_is_squeezed():
    for name, file in MODULES.items():
        text = file.read_text()
        if name != "world.language":  # its tables of words
            assert "fmt: skip" not in text and "fmt: off" not in text, name


def test_importing_the_package_is_light():
    code = (
        "import sys, safealign_utils, safealign_utils.runs.cli; "
        "print([m for m in ('torch', 'transformers', 'dask') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_no_private_name_of_another_module():
    """What is used across files is interface, and has a name without an underscore."""
    for name, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                private = [a.name for a in node.names if re.match(r"_[a-z]", a.name)]
                assert not private, (name, private)
