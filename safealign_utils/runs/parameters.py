"""Parameters of the notebooks: names, types, ranges, profiles, and how a refusal reads.

The parameters cell of a notebook says which names it has, their types and defaults; the tables here say
which values make sense and what 0 or "" means in a profile. Everything is checked before a kernel starts,
and again inside the notebook, so that plain papermill and JupyterLab are safe too.
"""

import ast
import difflib
import json
import os
import re
import sys
from pathlib import Path

from . import strict_yaml
from .rules import NEEDS_SAFETY, PROFILES, RULES, SHORTER, WORLD_ONLY, is_number

__all__ = [
    "NEEDS_SAFETY",
    "PROFILES",
    "RULES",
    "SHORTER",
    "WORLD_ONLY",
    "Refusal",
    "collect",
    "from_notebook",
    "read_cell",
    "resolve",
]
TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list}
PATHS = ("data", "model", "reward_model", "cost_model", "eval_prompts")  # may name files and folders
# What `-p` takes for a number: Python's own int() and float() take 1_000, 007, blanks and the digits of any script.
INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
FORMS = {
    "int": "a whole number in plain digits, as 10",
    "float": "a number in plain digits, as 0.5",
    "bool": "true or false",
    "list": "a list, as 0.5,1.0",
}


class Refusal(ValueError):
    """A parameter that cannot be used: the message names it, its value and the fix."""


def _plain(value):
    return value if isinstance(value, (int, float, str, bool)) else repr(value)


# ---------------------------------------------------------------- the parameters cell


def read_cell(notebook):
    """The parameters of a notebook file: {name: (type name, default)}.

    Raises Refusal unless exactly one code cell carries the tag `parameters` and holds annotated literals only.
    """
    try:
        cells = [c for c in json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refusal(f"notebook={str(notebook)!r}: not a readable notebook ({error})") from None
    tags = [c.get("metadata", {}).get("tags", []) for c in cells]
    found = [c for c, t in zip(cells, tags) if "parameters" in t]
    if len(found) != 1:
        near = [t for tag in tags for t in tag if t.lower() == "parameters" and t != "parameters"]
        fix = f"rename its tag {near[0]!r} to 'parameters'" if near else "tag exactly one cell 'parameters'"
        raise Refusal(f"notebook={Path(notebook).name}: {len(found)} cells are tagged 'parameters'; {fix}")
    source, out = "".join(found[0]["source"]), {}
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise Refusal(
            f"notebook={Path(notebook).name}: the parameters cell is no Python ({error.msg}, line {error.lineno})"
        ) from None
    for node in body:
        plain = (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(node.annotation, ast.Name)
        )
        try:
            if not plain or node.annotation.id not in TYPES or node.value is None:
                raise ValueError
            value = ast.literal_eval(node.value)
        except ValueError:
            line = ast.get_source_segment(source, node)
            raise Refusal(
                f"notebook={Path(notebook).name}: {line!r} in the parameters cell is not `name: type = literal`; "
                "derive values below it"
            ) from None
        if node.target.id in out:
            raise Refusal(f"notebook={Path(notebook).name}: {node.target.id} is given twice in the parameters cell")
        out[node.target.id] = (node.annotation.id, value)
    return out


# ---------------------------------------------------------------- values given


def collect(cell, given, files=()):
    """Merge parameter files (YAML) and `-p` texts over a cell's defaults, checked: {name: value}.

    A later file wins over an earlier one, and `-p`, which may name a parameter once, over all
    files.
    """
    values = {name: default for name, (_, default) in cell.items()}
    for file in files:
        try:
            loaded = strict_yaml.read(file)
        except ValueError as error:
            raise Refusal(f"-f {error}") from None
        loaded = {} if loaded is None else loaded
        if not isinstance(loaded, dict):
            raise Refusal(f"-f {file}: holds no names; write one `name: value` a line")
        others = [name for name in loaded if name in RULES and name not in cell]  # one profile serves several notebooks
        if others:
            print(f"-f {file}: left out, as other notebooks have them: {', '.join(others)}", file=sys.stderr)
        for name, value in loaded.items():
            if name not in others:
                values[name] = _typed(name, value, _known(name, cell), f" in {file}")
    for name, text in given:  # the last one wins, as on every command line
        values[name] = _parse(name, text, _known(name, cell))
    return {name: _at_home(value) if name in PATHS else value for name, value in values.items()}


def _at_home(value):
    """`~/` at the start of each path that a value names, as a shell writes it out: it leaves `-p
    data=~/file` alone."""
    if not isinstance(value, str):
        return value
    return re.sub(r"(?:^|(?<=[=,]))~(?=/)", lambda _: os.path.expanduser("~"), value)


def nearest(name, known):
    """The known name that was meant, capital letters and blanks aside: "did you mean 'beta'?", or
    all of them."""
    near = difflib.get_close_matches(str(name).strip().casefold(), known, n=1)
    return f"did you mean {near[0]!r}?" if near else "it has " + ", ".join(known)


def _known(name, cell):
    """The type of a parameter that the notebook has; a refusal names the nearest one."""
    if name not in cell:
        shown = name if name.isidentifier() else repr(name)
        raise Refusal(f"{shown}: the notebook has no such parameter; {nearest(name, cell)}")
    if name == "out_dir":
        raise Refusal("out_dir: the runner sets it; use --out FOLDER")
    return cell[name][0]


def _parse(name, text, kind):
    """The text of `-p name=text` as the annotated type."""
    try:
        if kind in ("int", "float"):
            plain = (INT if kind == "int" else FLOAT).fullmatch(text)
            if not plain and text not in ("nan", "inf", "-inf"):  # those are for the parameter's own rule to refuse
                raise ValueError
            return TYPES[kind](text)
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        if kind == "list":
            if not text.strip():
                raise ValueError
            names = [word.strip() for word in text.split(",")]
            if all(word.isidentifier() for word in names):
                return names
            value = json.loads(text if text.lstrip().startswith("[") else f"[{text}]")
            return [float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in value]
        return text
    except (ValueError, KeyError, OverflowError, RecursionError):
        raise Refusal(f"{name}={text!r}: must be {FORMS[kind]}") from None


def _typed(name, value, kind, where=""):
    """A typed value (from YAML, or from inside a notebook) held against its annotation."""
    try:
        if kind == "float" and is_number(value):
            return float(value)
        if kind == "list" and isinstance(value, (list, tuple)):
            if texts := [v for v in value if isinstance(v, str) and FLOAT.fullmatch(v)]:
                raise Refusal(f"{name}={value!r}{where}: {texts[0]!r} is text{_number_fix(texts[0])}")
            return [float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in value]
    except OverflowError:
        raise Refusal(f"{name}={value!r}{where}: is too large; write a smaller number") from None
    if isinstance(value, bool) != (kind == "bool") or not isinstance(value, TYPES[kind]):
        fix = f"; write {FORMS[kind]}" if kind in FORMS else "; write it in quotes"
        if value is None:
            fix = "; give a value, or leave the line out"
        elif isinstance(value, str) and (FLOAT if kind == "float" else INT).fullmatch(value):
            fix = _number_fix(value)
        elif isinstance(value, str) and kind in ("int", "float") and re.fullmatch(r"[-+]?[0-9]+", value):
            fix = "; write it without quotes or leading zeros"
        raise Refusal(f"{name}={value!r}{where}: must be of type {kind}, is {type(value).__name__}{fix}")
    return value


def _number_fix(text):
    """How a number that YAML 1.1 takes for text is written: 1e-3 as 1.0e-3, +.5 as 0.5."""
    mantissa, e, exponent = text.lower().partition("e")
    if not e and mantissa.lstrip("+-")[:1] != ".":
        return "; write it without quotes"
    sign = "-" if mantissa.startswith("-") else ""
    whole, _, decimals = mantissa.lstrip("+-").partition(".")
    power = (exponent if exponent[0] in "+-" else f"+{exponent}") if e else ""
    return f"; YAML reads {text} as text: write {sign}{whole or 0}.{decimals or 0}{e}{power}"


# ---------------------------------------------------------------- settings


def resolve(values, notebook=""):
    """Check types and ranges and fill in the profile: the resolved settings, a dict. Raises Refusal.

    `notebook` is its name: some have a shorter `small` profile.
    """
    out = {}
    for name, value in values.items():
        rule = RULES[name]
        value = _typed(name, value, rule.type)
        if rule.type == "list":
            value = [_plain(v) for v in value]
        if not (rule.profile and not value) and rule.test and not rule.test(value):
            raise Refusal(f"{name}={value!r}: must be {rule.words}")
        # a value given twice is no second measurement
        out[name] = list(dict.fromkeys(value)) if rule.type == "list" else value
    profile = PROFILES[out["profile"]] | SHORTER.get((out["profile"], notebook), {})
    out |= {name: profile[name] for name, value in out.items() if RULES[name].profile and not value}
    world = (out["model"] == "world", out["data"] == "world")
    if world == (True, False):
        raise Refusal(
            f"model='world' with data={out['data']!r}: the world's model knows only its own words; use model=scratch"
        )
    if out.get("template") == "chat" and out["model"] in ("world", "scratch"):
        raise Refusal(f"template='chat' with model={out['model']!r}: its tokenizer has no chat template; use auto")
    if not world[0] and out.get("labels") == "soft":
        raise Refusal("labels='soft': soft labels need the world's oracle; use labels=hard on real text")
    if world == (False, True):
        raise Refusal(f"data='world' with model={out['model']!r}: name the pairs to train on, as data=FILE or a hub id")
    if world[1] and out["label"] not in ("auto", "better"):
        raise Refusal(
            f"label={out['label']!r} with data='world': the optimum here is that of the reward; use label=better"
        )
    if world[1] and "cost_limit" in out:
        _check_limits(out)
    if "pool" in out:
        _check_selection(out)
    if out["seed"] + out["seeds"] > 2**31:
        raise Refusal(f"seeds={out['seeds']}: seed + seeds must stay below 2147483648")
    return out


def _check_selection(settings):
    """Refuse a pool that is too small, and what the kit's own networks do not have."""
    from ..policy import SCRATCH_MODEL, WORLD_MODEL
    from ..pools import SMALLEST

    if settings["data"] == "world" and settings["pairs"] < SMALLEST:
        raise Refusal(f"pairs={settings['pairs']}: a pool of four data sets needs at least {SMALLEST}")
    if settings["model"] in ("world", "scratch"):
        shape = WORLD_MODEL if settings["model"] == "world" else SCRATCH_MODEL
        check_network(settings, layers=shape["num_hidden_layers"], width=shape["hidden_size"])


def check_network(settings, *, layers, width):
    """Refuse a layer or a rank that the network does not have."""
    layer = settings.get("layer", -1)
    if not -layers - 1 <= layer <= layers:
        raise Refusal(f"layer={layer}: the network has layers 0 to {layers}, or {-layers - 1} to -1 from the end")
    for name in ("anchor_rank", "residual_rank"):
        if settings.get(name, 1) > width:
            raise Refusal(f"{name}={settings[name]}: the network's hidden states have {width} dimensions")


def _check_limits(settings):
    """Refuse limits on E[c] (or on E[max(c, 0)]) that no policy can meet on the world's training prompts."""
    from .. import optimum
    from ..world import World

    world = World()
    cost = world.cost[world.select("train")]
    asked = [("cost_limit", settings["cost_limit"], cost)]
    asked += [("cost_limits", limit, cost) for limit in settings.get("cost_limits", ())]
    asked += [("clipped_limits", limit, cost.clip(0)) for limit in settings.get("clipped_limits", ())]
    for name, limit, costs in asked:
        try:
            optimum.check_limit(limit, optimum.lowest_cost(costs))
        except ValueError as error:
            raise Refusal(str(error).replace("cost_limit", name, 1)) from None


def from_notebook(namespace, notebook=""):
    """Settings from a notebook's own variables (its `globals()`), checked in the same way."""
    return resolve({name: namespace[name] for name in RULES if name in namespace}, notebook)
