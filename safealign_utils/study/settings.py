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
from dataclasses import dataclass
from pathlib import Path

from . import strict_yaml

ONE_PIECE = (
    "00_the_world",
)  # notebooks of which little belongs to a seed: no use in splitting them


@dataclass(frozen=True)
class Rule:
    """Type name, test and the words for what is allowed; `profile` marks 0 or "" as "what the profile says"."""

    type: str
    test: object = None
    words: str = ""
    profile: bool = False


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _one_of(*names, profile=False):
    return Rule("str", lambda v: v in names, "one of " + ", ".join(names), profile)


_ANY = Rule("str")
_COUNT = Rule("int", lambda v: v > 0, "a whole number above 0 (0: the profile's)", True)
_FROM_0 = Rule("float", lambda v: 0 <= v < float("inf"), "a number, 0 or above")
_POSITIVE = Rule("float", lambda v: 0 < v < float("inf"), "a number above 0")
_NUMBERS = Rule(
    "list",
    lambda v: all(is_number(b) and 0 < b < float("inf") for b in v),
    "numbers above 0, as [0.5, 1.0]",
    True,
)
_FROM_ZERO = Rule(
    "list",
    lambda v: all(is_number(b) and 0 <= b < float("inf") for b in v),
    "numbers, 0 or above, as [0.0, 5.0]",
    True,
)
SCORE_REFERENCES = ("weaker", "equal", "aligned", "larger", "optimum")
TOKEN_RULES = (
    "signed",
    "random",
    "beta",
    "oracle",
    "inverted",
    "absolute",
    "frozen",
    "chosen",
    "rejected",
    "shuffled",
    "choices",
    "rho",
    "sepo",
    "tis",
    "averaged",
    "plain",
)
SELECTIONS = (
    "random",
    "random_copies",
    "dog",
    "dog_d",
    "literal",
    "log_det",
    "sharp_log_det",
    "safety_log_det",
    "k_means",
    "facility",
    "k_centre",
    "largest_margin",
    "smallest_margin",
    "easiest_half",
    "stratified",
    "all_epochs",
    "ablation",
)
PARTS = ("safedpo", "cdpo", "selective", "dog")  # of the notebook on the user's own pairs
JUDGES = ("mt_bench", "arena_hard", "arena_hard_2024", "alpaca_eval")
METHODS = (
    "dpo",
    "dpo_harmless",
    "dpo_safebetter",
    "safedpo",
    "safedpo_delta",
    "bfpo",
    "modpo",
    "sacpo",
    "mocan",
    "cdpo",
    "cdpo_coin",
    "selective",
    "dog_d_dpo",
    "dog_d_safedpo",
    "ppo_lagrangian",
)


def _names(known):
    return Rule(
        "list", lambda v: all(x in known for x in v), "names among " + ", ".join(known), True
    )


_SHARES = Rule(
    "list", lambda v: all(is_number(x) and 0 < x <= 1 for x in v), "shares above 0, up to 1", True
)
_RANK = Rule("int", lambda v: v >= 1, "a whole number, at least 1")
RULES = {
    "profile": _one_of("small", "full"),
    "seed": Rule("int", lambda v: 0 <= v < 2**31, "a whole number from 0 to 2147483647"),
    "seeds": _COUNT,
    "beta": _POSITIVE,
    "steps": _COUNT,
    "pairs": _COUNT,
    "batch_size": _COUNT,
    "learning_rate": Rule(
        "float", lambda v: 0 < v < float("inf"), "a number above 0 (0: the profile's)", True
    ),
    "dtype": _one_of("float64", "float32", "bfloat16", profile=True),
    "model": Rule("str", lambda v: v not in ("", "world"), "scratch, a folder or a hub id"),
    "revision": _ANY,
    "data": Rule(
        "str", lambda v: v != "world", "a file, a hub id, or several as name=path,name=path"
    ),
    "parts": _names(PARTS),
    "label": _one_of("auto", "better", "safer", "safer_or_better", "better_or_safer"),
    "template": _one_of("auto", "chat", "dialogue", "safe_rlhf", "plain"),
    "max_length": Rule(
        "int", lambda v: v >= 16, "a whole number of tokens, at least 16 (0: the profile's)", True
    ),
    "device": _one_of("auto", "cpu", "cuda"),
    "accumulate": Rule("int", lambda v: v >= 1, "a whole number of parts, at least 1"),
    "checkpointing": Rule("bool"),
    "lora": Rule("int", lambda v: v >= 0, "the rank of the adapters, 0 for all weights"),
    "out_dir": _ANY,
    "betas": _NUMBERS,
    "labels": _one_of("hard", "soft"),
    "pair_shares": _SHARES,
    "leak_weight": _FROM_0,
    "delta": _FROM_0,
    "deltas": _FROM_ZERO,
    "recipe_factor": Rule(
        "float", lambda v: 0 < v < float("inf"), "a number above 0 (0: the profile's)", True
    ),
    "ppo_iterations": _COUNT,
    "kl_coeff": _FROM_0,
    "cost_limit": Rule("float", lambda v: abs(v) < float("inf"), "a finite number"),
    "clipped_limit": _POSITIVE,
    "dual_lr": Rule("float", lambda v: 0 < v <= 1000, "a number above 0, at most 1000"),
    "rounds": _COUNT,
    "round_steps": _COUNT,
    "relabel": _one_of("coin", "argmax", "soft"),
    "reward_model": Rule("str", bool, "kit, a folder or a hub id"),
    "cost_model": Rule("str", bool, "kit, a folder or a hub id"),
    "scorer_steps": _COUNT,
    "scorer_rate": Rule(
        "float", lambda v: 0 < v < float("inf"), "a number above 0 (0: the profile's)", True
    ),
    "eval_prompts": _ANY,
    "eval_size": _COUNT,
    "new_tokens": _COUNT,
    "temperature": Rule("float", lambda v: 0 <= v < float("inf"), "a number, 0 (greedy) or above"),
    "round_samples": _COUNT,
    "fixed_lambda": _FROM_0,
    "cost_samples": Rule("int", lambda v: v >= 0, "a whole number, 0 for the exact mean"),
    "judge_files": Rule(
        "str",
        lambda v: not v or set(v.split(",")) <= set(JUDGES),
        "forms among " + ", ".join(JUDGES) + ", with commas between",
    ),
    "keep": Rule("float", lambda v: 0 < v <= 1, "a share of tokens above 0, up to 1"),
    "keeps": _SHARES,
    "score_reference": _one_of(*SCORE_REFERENCES),
    "score_references": _names(SCORE_REFERENCES),
    "token_rules": _names(TOKEN_RULES),
    "label_noise": Rule(
        "float", lambda v: 0 <= v <= 0.5, "a share of flipped labels, from 0 to 0.5"
    ),
    "world_size": _one_of("default", "large"),
    "budget": Rule("float", lambda v: 0 < v <= 1, "a share of pairs above 0, up to 1"),
    "budgets": _SHARES,
    "layer": Rule("int"),
    "pooling": _one_of("mean", "last"),
    "anchor_rank": _RANK,
    "residual_rank": _RANK,
    "ridge": _POSITIVE,
    "pool": _one_of("near", "exact", "spread"),
    "selections": _names(SELECTIONS),
    "methods": _names(METHODS),
}
# `full` holds the headline cell of each notebook; the larger grids are files in notebooks/sweeps.
PROFILES = {
    "small": dict(
        seeds=1,
        dtype="float64",
        pairs=1500,
        steps=60,
        batch_size=32,
        learning_rate=3e-3,
        max_length=256,
        betas=[0.5, 1.0],
        pair_shares=[0.25, 1.0],
        deltas=[0.0, 5.0],
        recipe_factor=1.0,
        ppo_iterations=2,
        rounds=5,
        round_steps=20,
        keeps=[0.4],
        score_references=["weaker", "equal", "aligned", "optimum"],
        token_rules=[*TOKEN_RULES[:7], "shuffled", "choices", "rho", "plain"],
        budgets=[0.11],
        selections=[r for r in SELECTIONS if r not in ("easiest_half", "all_epochs")],
        scorer_steps=60,
        scorer_rate=1e-3,
        eval_size=32,
        new_tokens=48,
        round_samples=32,
        methods=["dpo", "safedpo", "cdpo", "dog_d_safedpo"],
        parts=[],
    ),
    "full": dict(
        seeds=3,
        dtype="float32",
        pairs=6000,
        steps=200,
        batch_size=32,
        learning_rate=3e-3,
        max_length=256,
        betas=[0.25, 0.5, 2.0],
        pair_shares=[0.25, 1.0],
        deltas=[0.0, 5.0, 20.0],
        recipe_factor=1.0,
        ppo_iterations=60,
        rounds=8,
        round_steps=100,
        keeps=[0.4],
        score_references=["weaker", "equal", "aligned", "optimum"],
        token_rules=["signed", "random", "oracle", "frozen", "shuffled"],
        budgets=[0.11],
        selections=["random", "dog", "dog_d", "literal", "log_det", "k_means", "stratified"],
        scorer_steps=200,
        scorer_rate=1e-3,
        eval_size=200,
        new_tokens=128,
        round_samples=200,
        methods=list(METHODS),
        parts=[],
    ),
}
SHORTER = {
    ("small", "01_dpo_basics"): dict(steps=40),
    ("small", "02_safedpo"): dict(pairs=400, steps=12),
    ("small", "03_cdpo_dual_gradient_descent"): dict(pairs=400, steps=12, round_steps=10),
    ("small", "04_selective_dpo_token_scoring"): dict(pairs=400, steps=12),
    ("small", "05_dog_selection"): dict(pairs=480, steps=12),
    ("small", "06_one_loss_four_levers"): dict(pairs=320, steps=8),
}  # notebooks with many trainings
__all__ = [
    "PROFILES",
    "RULES",
    "SHORTER",
    "Refusal",
    "collect",
    "from_notebook",
    "read_cell",
    "resolve",
]
TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list}
PATHS = (
    "data",
    "model",
    "reward_model",
    "cost_model",
    "eval_prompts",
)  # may name files and folders
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
        cells = [
            c
            for c in json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
            if c["cell_type"] == "code"
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refusal(f"notebook={str(notebook)!r}: not a readable notebook ({error})") from None
    tags = [c.get("metadata", {}).get("tags", []) for c in cells]
    found = [c for c, t in zip(cells, tags) if "parameters" in t]
    if len(found) != 1:
        near = [t for tag in tags for t in tag if t.lower() == "parameters" and t != "parameters"]
        fix = (
            f"rename its tag {near[0]!r} to 'parameters'"
            if near
            else "tag exactly one cell 'parameters'"
        )
        raise Refusal(
            f"notebook={Path(notebook).name}: {len(found)} cells are tagged 'parameters'; {fix}"
        )
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
            raise Refusal(
                f"notebook={Path(notebook).name}: {node.target.id} is given twice in the parameters cell"
            )
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
        others = [
            name for name in loaded if name in RULES and name not in cell
        ]  # one profile serves several notebooks
        if others:
            print(
                f"-f {file}: left out, as other notebooks have them: {', '.join(others)}",
                file=sys.stderr,
            )
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
        if name in ("data", "model"):
            raise Refusal(
                f"{name}: this notebook is about the made world; use 08_your_own_pairs for real pairs"
            )
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
            if not plain and text not in (
                "nan",
                "inf",
                "-inf",
            ):  # those are for the parameter's own rule to refuse
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
            return [
                float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in value
            ]
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
                raise Refusal(
                    f"{name}={value!r}{where}: {texts[0]!r} is text{_number_fix(texts[0])}"
                )
            return [
                float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in value
            ]
    except OverflowError:
        raise Refusal(f"{name}={value!r}{where}: is too large; write a smaller number") from None
    if isinstance(value, bool) != (kind == "bool") or not isinstance(value, TYPES[kind]):
        fix = f"; write {FORMS[kind]}" if kind in FORMS else "; write it in quotes"
        if value is None:
            fix = "; give a value, or leave the line out"
        elif isinstance(value, str) and (FLOAT if kind == "float" else INT).fullmatch(value):
            fix = _number_fix(value)
        elif (
            isinstance(value, str)
            and kind in ("int", "float")
            and re.fullmatch(r"[-+]?[0-9]+", value)
        ):
            fix = "; write it without quotes or leading zeros"
        raise Refusal(
            f"{name}={value!r}{where}: must be of type {kind}, is {type(value).__name__}{fix}"
        )
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
    if out.get("template") == "chat" and out["model"] == "scratch":
        raise Refusal(
            "template='chat' with model='scratch': its tokenizer has no chat template; use auto"
        )
    if "cost_limit" in out and "data" not in out:
        _check_limits(out)
    if "pool" in out or out.get("model") == "scratch":
        _check_selection(out)
    if out["seed"] + out["seeds"] > 2**31:
        raise Refusal(f"seeds={out['seeds']}: seed + seeds must stay below 2147483648")
    return out


def _check_selection(settings):
    """Refuse a pool that is too small, and what the kit's own networks do not have."""
    from ..policy import WORLD_MODEL
    from ..references import SCRATCH_MODEL
    from ..world.redundant import SMALLEST

    if "pool" in settings and settings["pairs"] < SMALLEST:
        raise Refusal(
            f"pairs={settings['pairs']}: a pool of four data sets needs at least {SMALLEST}"
        )
    shape = WORLD_MODEL if "pool" in settings else SCRATCH_MODEL
    check_network(settings, layers=shape["num_hidden_layers"], width=shape["hidden_size"])


def check_network(settings, *, layers, width):
    """Refuse a layer or a rank that the network does not have."""
    layer = settings.get("layer", -1)
    if not -layers - 1 <= layer <= layers:
        raise Refusal(
            f"layer={layer}: the network has layers 0 to {layers}, or {-layers - 1} to -1 from the end"
        )
    for name in ("anchor_rank", "residual_rank"):
        if settings.get(name, 1) > width:
            raise Refusal(
                f"{name}={settings[name]}: the network's hidden states have {width} dimensions"
            )


def _check_limits(settings):
    """Refuse limits on E[c] (or on E[max(c, 0)]) that no policy can meet on the world's training prompts."""
    from ..world import optimum
    from ..world.world import World

    world = World()
    cost = world.cost[world.select("train")]
    asked = [("cost_limit", settings["cost_limit"], cost)]
    if "clipped_limit" in settings:
        asked.append(("clipped_limit", settings["clipped_limit"], cost.clip(0)))
    for name, limit, costs in asked:
        try:
            optimum.check_limit(limit, optimum.lowest_cost(costs))
        except ValueError as error:
            raise Refusal(str(error).replace("cost_limit", name, 1)) from None


def from_notebook(namespace, notebook=""):
    """Settings from a notebook's own variables (its `globals()`), checked in the same way."""
    return resolve({name: namespace[name] for name in RULES if name in namespace}, notebook)


def pick_device(wanted):
    """cpu or cuda; "auto" takes a GPU where there is one. Raises Refusal for a GPU that is not there."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise Refusal(
            "device='cuda': no CUDA device is visible to torch; use device=auto or device=cpu"
        )
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
