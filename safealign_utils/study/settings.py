"""Parameters of the notebooks: names, types, ranges, profiles, and how a refusal reads.

The parameters cell of a notebook says which of FIELDS it has, and their defaults. 0, "" or []
stands for what the profile says (`notebooks/profiles/small.yaml` or `full.yaml`). All is checked
before a kernel starts, and again in the notebook: plain papermill and JupyterLab are safe too.
"""

import ast
import difflib
import functools
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

from pydantic import Field, TypeAdapter, ValidationError

from ..engine import boundary
from ..engine.boundary import Refusal, shown
from . import strict_yaml

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
ONE_PIECE = ("00_the_world",)  # of which little belongs to a seed: no use in splitting it
# A pretrained model in bfloat16, which no two processors compute alike: not verified, and not made
# again with the others.
NOT_THE_SAME = ("07_a_real_model",)
PATHS = ("data", "model", "reward_model", "cost_model", "eval_prompts")  # may name files
SCORE_REFERENCES = ("weaker", "equal", "aligned", "larger", "optimum")
TOKEN_RULES = tuple(
    "signed random beta oracle inverted absolute frozen chosen rejected shuffled choices rho sepo "
    "tis averaged plain".split()
)
SELECTIONS = tuple(
    "random random_copies dog dog_d literal log_det sharp_log_det safety_log_det k_means facility "
    "k_centre largest_margin smallest_margin easiest_half stratified all_epochs ablation".split()
)
PARTS = ("safedpo", "cdpo", "selective", "dog")  # of the notebook on the user's own pairs
# What PATHS may say that names nothing outside.
OWN = {"model": ("scratch",), "reward_model": ("kit", "probe"), "cost_model": ("kit", "probe")}
JUDGES = ("mt_bench", "arena_hard", "arena_hard_2024", "alpaca_eval")
METHODS = tuple(
    "dpo dpo_harmless dpo_safebetter safedpo safedpo_delta bfpo modpo sacpo mocan cdpo cdpo_coin "
    "selective dog_d_dpo dog_d_safedpo ppo_lagrangian".split()
)


# ---------------------------------------------------------------- the table of parameters
def of_kind(kind, words, **limits):
    """A type with its range, and the words for what is allowed; no number is infinite."""
    limits |= {"allow_inf_nan": False} if kind is float else {}
    return Annotated[kind, Field(description=words, **limits)]


def one_of(*names, or_profile=False):
    return of_kind(Literal[names + ("",) * or_profile], "one of " + ", ".join(names))


def _names(known):
    return of_kind(list[Literal[known]], "names among " + ", ".join(known))


# Larger numbers would fill any memory or run for years: they are slips.
_MOST, _SEEDS, _WIDEST, _ENTRIES, _LETTERS = 10**7, 10**4, 10**5, 1000, 2**14
_UP_TO = f", at most {_MOST}"
_COUNT = of_kind(int, f"a whole number above 0{_UP_TO} (0: the profile's)", ge=0, le=_MOST)
_FACTOR = of_kind(float, "a number above 0 (0: the profile's)", ge=0)
_ABOVE = of_kind(float, "a number above 0", gt=0)
_FROM_ZERO = of_kind(float, "a number, 0 or above", ge=0)
_SHARE = of_kind(float, "a share above 0, up to 1", gt=0, le=1)
_DUAL_LR = of_kind(float, "a number above 0, at most 1000", gt=0, le=1000)
_LIMIT = of_kind(float, "a finite number")
_ABOVES = of_kind(list[_ABOVE], "numbers above 0, as [0.5, 1.0]")
_FROM_ZEROS = of_kind(list[_FROM_ZERO], "numbers, 0 or above, as [0.0, 5.0]")
_SHARES = of_kind(list[_SHARE], "shares above 0, up to 1")
_RANK = of_kind(int, f"a whole number, at least 1, at most {_WIDEST}", ge=1, le=_WIDEST)
_STEPS = of_kind(int, f"a whole number of steps, 0 for none{_UP_TO}", ge=0, le=_MOST)
_SAMPLES = of_kind(int, f"a whole number, 0 for the exact mean{_UP_TO}", ge=0, le=_MOST)
_TOKENS = f"a whole number of tokens, at least 16{_UP_TO} (0: the profile's)"
_SCORER = of_kind(str, "kit, probe, a folder or a hub id", min_length=1)
_FORMS = ", ".join(JUDGES)
_SEVERAL = "^((FORM)(,(FORM))*)?$".replace("FORM", "|".join(JUDGES))
FIELDS = {
    "profile": one_of("small", "full"),
    "seed": of_kind(int, "a whole number from 0 to 2147483647", ge=0, lt=2**31),
    "seeds": of_kind(
        int, f"a whole number above 0, at most {_SEEDS} (0: the profile's)", ge=0, le=_SEEDS
    ),
    "beta": _ABOVE,
    "steps": _COUNT,
    "pairs": _COUNT,
    "batch_size": _COUNT,
    "learning_rate": _FACTOR,
    "dtype": one_of("float64", "float32", "bfloat16", or_profile=True),
    "model": of_kind(str, "scratch, smollm2, a folder or a hub id", min_length=1),
    "revision": of_kind(str, "the revision of a hub model or data set"),
    "data": of_kind(str, "a file, a hub id, or several as name=path,name=path"),
    "parts": _names(("dpo", *PARTS)),
    "heldout_categories": of_kind(list[str], "names of categories"),
    "sft_steps": _STEPS,
    "sft_rate": _ABOVE,
    "heldout": of_kind(float, "a share below 1 (0: the file's own split, or 15 %)", ge=0, lt=1),
    "label": one_of("auto", "better", "safer", "safer_or_better", "better_or_safer"),
    "template": one_of("auto", "chat", "dialogue", "safe_rlhf", "plain"),
    "max_length": of_kind(int, _TOKENS, ge=0, le=_MOST),
    "device": one_of("auto", "cpu", "cuda"),
    "accumulate": of_kind(int, f"a whole number of parts, at least 1{_UP_TO}", ge=1, le=_MOST),
    "checkpointing": of_kind(bool, "true or false"),
    "lora": of_kind(
        int, f"the rank of the adapters, 0 for all weights, at most {_WIDEST}", ge=0, le=_WIDEST
    ),
    "out_dir": of_kind(str, "a folder"),
    "betas": _ABOVES,
    "labels": one_of("hard", "soft"),
    "pair_shares": _SHARES,
    "leak_weight": _FROM_ZERO,
    "delta": _FROM_ZERO,
    "deltas": _FROM_ZEROS,
    "recipe_factor": _FACTOR,
    "ppo_iterations": _COUNT,
    "kl_coeff": _FROM_ZERO,
    "cost_limit": _LIMIT,
    "clipped_limit": _ABOVE,
    "dual_lr": _DUAL_LR,
    "rounds": _COUNT,
    "round_steps": _COUNT,
    "relabel": one_of("coin", "argmax", "soft"),
    "cross_fitted": of_kind(bool, "true or false"),
    "reward_model": _SCORER,
    "cost_model": _SCORER,
    "cost_loss": one_of("auto", "safe_rlhf", "equal_status", "hinge"),
    "scorer_steps": _COUNT,
    "scorer_rate": _FACTOR,
    "eval_prompts": of_kind(str, "a set of prompts, a file, or name=path"),
    "eval_size": _COUNT,
    "new_tokens": _COUNT,
    "temperature": of_kind(float, "a number, 0 (greedy) or above", ge=0),
    "round_samples": _COUNT,
    "fixed_lambda": _FROM_ZERO,
    "cost_samples": _SAMPLES,
    "judge_files": of_kind(str, f"forms among {_FORMS}, with commas between", pattern=_SEVERAL),
    "keep": of_kind(float, "a share of tokens above 0, up to 1", gt=0, le=1),
    "keeps": _SHARES,
    "score_reference": one_of(*SCORE_REFERENCES),
    "score_references": _names(SCORE_REFERENCES),
    "token_rules": _names(TOKEN_RULES),
    "label_noise": of_kind(float, "a share of flipped labels, from 0 to 0.5", ge=0, le=0.5),
    "world_size": one_of("default", "large", "attributes"),
    "budget": of_kind(float, "a share of pairs above 0, up to 1", gt=0, le=1),
    "budgets": _SHARES,
    "layer": of_kind(int, "a layer of the network", ge=-_WIDEST, le=_WIDEST),
    "pooling": one_of("mean", "last"),
    "anchor_rank": _RANK,
    "residual_rank": _RANK,
    "ridge": _ABOVE,
    "pool": one_of("near", "exact", "spread"),
    "selections": _names(SELECTIONS),
    "methods": _names(METHODS),
}
ADAPTERS = {name: TypeAdapter(field) for name, field in FIELDS.items()}
TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list}
# What `-p` takes for a number: Python's own int() and float() take 1_000, 007, blanks and the
# digits of any script. nan and inf are for the parameter's own range to refuse.
PLAIN = {
    "int": re.compile(r"[-+]?(0|[1-9][0-9]*)"),
    "float": re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|nan|-?inf"),
}
MOST_SOURCE = 2**16  # characters of a parameters cell
FORMS = {
    "int": "a whole number in plain digits, as 10",
    "float": "a number in plain digits, as 0.5",
    "bool": "true or false",
    "list": "a list, as 0.5,1.0",
}


def kind(name):
    """The type of a parameter by its name, as a parameters cell writes it: "float"."""
    plain = get_args(FIELDS[name])[0]
    return "str" if get_origin(plain) is Literal else (get_origin(plain) or plain).__name__


def checked(name, value, where=""):
    """A value as the type of its parameter, held against its range; nothing twice in a list.

    Raises Refusal, in which `where` names the file that the value is from.
    """
    try:
        value = ADAPTERS[name].validate_python(value, strict=True)
    except ValidationError as error:
        why = _why(name, value, error.errors()[0])
        raise Refusal(f"{name}={shown(value)}{where}: {why}") from None
    if why := _bad_text(name, value):
        raise Refusal(f"{name}={shown(value)}{where}: {why}")
    return list(dict.fromkeys(value)) if kind(name) == "list" else value


def _bad_text(name, value):
    """What is wrong with the signs of a text, or with the length of a list; "" where nothing is."""
    if isinstance(value, list) and len(value) > _ENTRIES:
        return f"has {len(value):,} entries, at most {_ENTRIES:,} are taken; name fewer"
    for text in value if isinstance(value, list) else [value]:
        if not isinstance(text, str):
            continue
        if len(text) > _LETTERS:
            return f"has {len(text):,} characters, at most {_LETTERS:,} are taken; shorten it"
        odd = [c for c in text if not c.isprintable() and (name not in PATHS or c == "\0")]
        odd += [c for c in text if "\ud800" <= c <= "\udfff"]
        if odd:
            return f"holds {ascii(odd[0])}, which is no printable character; take it out"
    return ""


def _why(name, value, error):
    """What is wrong with a value, and the fix."""
    wanted = kind(name)
    if value is None:
        return "has no value; give one, or leave the line out"
    if type(value) is int and abs(value) > sys.float_info.max:
        return f"is too large; write a smaller number: {_words(name)}"
    if error["loc"] or not error["type"].endswith("_type"):
        return f"must be {_words(name)}"
    fix = "write it in quotes" if wanted == "str" else f"write {FORMS[wanted]}"
    if isinstance(value, str):
        fix += ", without quotes"
    return f"must be of type {wanted}, is {type(value).__name__}; {fix}"


def _words(name):
    return FIELDS[name].__metadata__[-1].description


# ---------------------------------------------------------------- the parameters cell
def read_cell(notebook):
    """The parameters of a notebook file: {name: (type name, default)}.

    Raises Refusal unless exactly one code cell carries the tag `parameters` and holds annotated
    literals only. (papermill's `inspect_notebook` passes over what it cannot read.)
    """
    file, out = Path(notebook).name, {}
    source = _tagged_source(Path(notebook))
    for node in _body(file, source):
        try:
            name, annotation, value = node.target.id, node.annotation.id, node.value
            _, value = TYPES[annotation], ast.literal_eval(value)
        except (AttributeError, ValueError, KeyError, TypeError, RecursionError, MemoryError):
            line = f"{shown(ast.get_source_segment(source, node))} in the parameters cell"
            fix = "is not `name: type = literal`; derive values below it"
            raise Refusal(f"notebook={file}: {line} {fix}") from None
        if name in out:
            raise Refusal(f"notebook={file}: {name} is given twice in the parameters cell")
        out[name] = (annotation, value)
    return out


def _body(file, source):
    """The statements of a parameters cell; Python's own parser is given no more than a cell."""
    fix = "write `name: type = literal`, one a line"
    if len(source) > MOST_SOURCE:
        why = f"has {len(source):,} characters, at most {MOST_SOURCE:,} are read"
        raise Refusal(f"notebook={file}: the parameters cell {why}; {fix}")
    try:
        return ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f"({getattr(error, 'msg', None) or boundary.reason(error)}, line {line or 1})"
        words = f"the parameters cell is no Python {where}; {fix}"
        raise Refusal(f"notebook={file}: {words}") from None


def _tagged_source(notebook):
    with boundary.reading(f"notebook={str(notebook)!r}: not a readable notebook", "save it again"):
        cells = boundary.read_cells(notebook)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    tags = [[tag for tag in cell["metadata"].get("tags", [])] for cell in code]
    found = [cell for cell, its in zip(code, tags) if "parameters" in its]
    if len(found) != 1:
        near = [str(tag) for its in tags for tag in its]
        near = [tag for tag in near if tag.lower() == "parameters" != tag]
        fix = "tag exactly one cell 'parameters'"
        fix = f"rename its tag {near[0]!r} to 'parameters'" if near else fix
        raise Refusal(f"notebook={notebook.name}: {len(found)} cells tagged 'parameters'; {fix}")
    return found[0]["source"]


# ---------------------------------------------------------------- values given
def collect(cell, given, files=(), notebook="the notebook"):
    """Merge parameter files (YAML) and `-p` texts over a cell's defaults: {name: value}.

    A later file wins over an earlier one, and `-p` over all files; a name given twice with `-p` is
    refused. `notebook` is named where a parameter is refused that only others have.
    """
    values = {name: default for name, (_, default) in cell.items()}
    for file in files:
        values |= _of_file(file, cell, notebook)
    check_once(given)
    for name, text in given:
        _check_name(name, text, cell, notebook)
        values[name] = _parse(name, text)
    return {name: _at_home(value) if name in PATHS else value for name, value in values.items()}


def check_once(given):
    """Refuse a name that `-p` gives twice: one of the two values would be lost."""
    seen = {}
    for name, text in given:
        if name in seen:
            twice = f"{shown(seen[name])} and {shown(text)}"
            raise Refusal(f"{name}={shown(text)}: -p gives {name} twice, {twice}; keep one")
        seen[name] = text


def _of_file(file, cell, notebook):
    """The values of a parameter file, which may serve several notebooks: what others have is left
    out and said; not so what the run would be about."""
    try:
        loaded = strict_yaml.read(file)
    except ValueError as error:
        raise Refusal(f"-f {error}") from None
    loaded = {} if loaded is None else loaded
    if not isinstance(loaded, dict):
        raise Refusal(f"-f {file}: holds no names; write one `name: value` a line")
    others = [n for n in loaded if n in FIELDS and n not in (*cell, "data", "model")]
    if others:
        words = f"left out, as other notebooks have them: {boundary.some(others)}"
        print(f"-f {file}: {words}", file=sys.stderr)
    own = {name: value for name, value in loaded.items() if name not in others}
    for name, value in own.items():
        _check_name(name, value, cell, notebook)
    return {name: checked(name, value, f" in {file}") for name, value in own.items()}


def _check_name(name, value, cell, notebook):
    """Refuse a name that the notebook does not have: with the notebooks that do, or the nearest."""
    if name == "out_dir":
        raise Refusal("out_dir: the runner sets it; use --out FOLDER")
    if name in cell:
        return
    numbered = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")) if name in FIELDS else []
    if have := [path.stem for path in numbered if name in read_cell(path)]:
        words = f"{', '.join(have)} {'has' if len(have) == 1 else 'have'}"
        raise Refusal(f"{name}={shown(value)}: {notebook} has no parameter {name}; {words}")
    called = shown(name)[1:-1] if name.isidentifier() else shown(name)
    fix = nearest(name, cell)
    raise Refusal(f"{called}={shown(value)}: the notebook has no such parameter; {fix}")


def nearest(name, known):
    """ "did you mean 'beta'?", capital letters and blanks aside, or all known names."""
    known = [str(one) for one in known]
    near = difflib.get_close_matches(str(name)[:80].strip().casefold(), known, n=1)
    if near:
        return f"did you mean {shown(near[0])}?"
    return "it has " + boundary.some(known, 80)


def _at_home(value):
    """`~/` at the start of each path of a value, as a shell writes it out: not in `data=~/file`."""
    home = os.path.expanduser("~/")
    return re.sub(r"(^|(?<=[=,]))~/", lambda _: home, value) if isinstance(value, str) else value


def _parse(name, text):
    """The text of `-p name=text` as the type of the parameter."""
    wanted = kind(name)
    try:
        if wanted in PLAIN:
            return {"int": int, "float": boundary.number}[wanted](PLAIN[wanted].fullmatch(text)[0])
        if wanted == "bool":
            return {"true": True, "false": False}[text.lower()]
        return _parse_list(text) if wanted == "list" else text
    except boundary.Lost as error:
        raise Refusal(f"{name}={error}") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Refusal(f"{name}={shown(text)}: must be {FORMS[wanted]}") from None


def _parse_list(text):
    """A JSON list, its brackets or the quotes of its names left out or not."""
    names = [word.strip() for word in text.split(",")]
    if all(word.isidentifier() for word in names):
        return names
    text = text.strip()
    if len(text) > 100 * _LETTERS:
        raise ValueError("is too long")
    whole = text if text[:1] in ("[", "") else f"[{text}]"
    return boundary.parse_json(whole, "list", parse_int=float, parse_float=boundary.number)


# ---------------------------------------------------------------- settings
def profile(name, notebook=""):
    """{parameter: value} of a profile; a notebook may have its own values in it. Raises Refusal."""
    file = NOTEBOOKS / "profiles" / f"{name}.yaml"
    try:
        values = strict_yaml.read(file)
    except ValueError as error:
        raise Refusal(f"profile={name!r}: {error}; run from a clone of the project") from None
    with boundary.reading(f"profile={name!r}: {file}", "run from a clone of the project"):
        own = values.pop("notebooks", {})
        values |= own.get(notebook, {})
    if unknown := [n for n in values if n not in FIELDS]:
        raise Refusal(f"profile={name!r}: {file} has {unknown[0]!r}; {nearest(unknown[0], FIELDS)}")
    return {name: checked(name, value, f" in {file}") for name, value in values.items()}


def resolve(values, notebook=""):
    """Check types and ranges and fill in the profile: the resolved settings, a dict.

    `notebook` is its name: some have a shorter `small` profile. Raises Refusal.
    """
    out = {name: checked(name, value) for name, value in values.items()}
    filled = profile(out["profile"], notebook)
    out |= {name: filled[name] for name, value in out.items() if name in filled and not value}
    _check_text(out)
    _check_limits(out)
    if "pool" in out or "layer" in out:
        _check_selection(out)
    if out["seed"] + out["seeds"] > 2**31:
        raise Refusal(f"seeds={out['seeds']}: seed + seeds must stay below 2147483648")
    return out


def from_notebook(namespace, notebook=""):
    """Settings from a notebook's own variables (its `globals()`), checked in the same way."""
    return resolve({name: namespace[name] for name in FIELDS if name in namespace}, notebook)


def pick_device(wanted):
    """cpu or cuda; "auto" takes a GPU where there is one. Raises Refusal where there is none."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise Refusal("device='cuda': no CUDA device is visible to torch; use auto or cpu")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


# ---------------------------------------------------------------- what has no effect
OF_TEXT = (
    "model revision sft_steps sft_rate heldout heldout_categories label template max_length "
    "accumulate checkpointing lora parts cross_fitted reward_model cost_model cost_loss "
    "scorer_steps scorer_rate round_samples eval_prompts eval_size new_tokens temperature "
    "judge_files".split()
)
OF_PART = {
    "safedpo": ("delta",),
    "cdpo": "cost_limit dual_lr rounds round_steps round_samples relabel fixed_lambda".split(),
    "selective": ("keep", "score_reference", "token_rules"),
    "dog": "budget layer pooling anchor_rank residual_rank ridge selections".split(),
}


def ignored(settings):
    """{parameter: why} of those that a run with these settings cannot mean."""
    out = {}
    if "label" in settings and not settings["data"]:
        out |= dict.fromkeys(OF_TEXT, "there is no data; give data=FILE")
    if settings.get("sft_steps", 1) == 0:
        out["sft_rate"] = "sft_steps=0 does no fine-tuning; give sft_steps"
    if settings.get("heldout_categories"):
        out["heldout"] = "heldout_categories says which prompts are held out"
    return out


def unused(settings):
    """{parameter: why} of those that belong to a part, a scorer or a method which is left out: the
    same command may serve other parts."""
    out, parts = {}, settings.get("parts") or PARTS
    if "kit" not in (settings.get("reward_model", "kit"), settings.get("cost_model", "kit")):
        why = "neither reward_model nor cost_model is kit, which is trained here"
        out |= dict.fromkeys(("scorer_steps", "scorer_rate"), why)
    if settings.get("cost_model", "kit") != "kit":
        out["cost_loss"] = "cost_model is not kit, which is trained here"
    for part in OF_PART if "parts" in settings else ():
        if part not in parts:
            out |= dict.fromkeys(OF_PART[part], f"parts has no {part}")
    if "methods" in settings and "ppo_lagrangian" not in settings["methods"]:
        out["ppo_iterations"] = "methods has no ppo_lagrangian"
    return out


def check_used(settings, cell, values, given):
    """Refuse a value of `-p` that the run would ignore; the default of the cell passes. `values`
    are those of `collect`."""
    for name, why in ignored(settings).items():
        if name in dict(given) and values[name] != cell[name][1]:
            words = f"{name}={shown(values[name])}: has no effect, as {why}"
            raise Refusal(f"{words}, or leave {name} out")


def say_unused(settings, cell, values):
    """To stderr, once: what was given, by `-p` or a file, and has no effect in this run."""
    found = ignored(settings) | unused(settings)
    for name, why in found.items():
        if name in cell and values[name] != cell[name][1]:
            _say(f"{name}={shown(values[name])}: has no effect, as {why}")


@functools.cache
def _say(words):
    print(words, file=sys.stderr)


# ---------------------------------------------------------------- what does not go together
def _check_text(settings):
    """Refuse the made world, a template that the tokenizer does not have, texts of few tokens."""
    for name in ("data", "model"):
        if settings.get(name) == "world":
            raise Refusal(f"{name}='world': must be {_words(name)}")
    if settings.get("template") == "chat" and settings["model"] == "scratch":
        why = "its tokenizer has no chat template; use auto"
        raise Refusal(f"template='chat' with model='scratch': {why}")
    if settings.get("sft_steps") and settings["model"] == "scratch":
        why = "it is fine-tuned on the pairs as it is; use 0"
        raise Refusal(f"sft_steps={settings['sft_steps']} with model='scratch': {why}")
    if settings.get("max_length", 16) < 16:
        raise Refusal(f"max_length={settings['max_length']}: must be {_words('max_length')}")


def _check_limits(settings):
    """Refuse limits on E[c] (or E[max(c, 0)]) that no policy meets on the training prompts."""
    if "cost_limit" not in settings or "model" in settings:
        return
    from ..world import optimum
    from ..world.world import World

    world = World()
    cost = world.cost[world.select("train")]
    for name, costs in (("cost_limit", cost), ("clipped_limit", cost.clip(0))):
        try:
            if name in settings:
                optimum.check_limit(settings[name], optimum.lowest_cost(costs))
        except ValueError as error:
            raise Refusal(str(error).replace("cost_limit", name, 1)) from None


def _check_selection(settings):
    """Refuse a pool that is too small, and what the kit's own networks do not have."""
    from ..policy import WORLD_MODEL
    from ..references import SCRATCH_MODEL
    from ..world.redundant import SMALLEST

    if "pool" in settings and settings["pairs"] < SMALLEST:
        raise Refusal(f"pairs={settings['pairs']}: four data sets need at least {SMALLEST}")
    if settings.get("model", "scratch") == "scratch":
        shape = SCRATCH_MODEL if "data" in settings else WORLD_MODEL
        check_network(settings, layers=shape["num_hidden_layers"], width=shape["hidden_size"])


def check_network(settings, *, layers, width):
    """Refuse a layer or a rank that the network does not have."""
    layer = settings.get("layer", -1)
    if not -layers - 1 <= layer <= layers:
        known = f"0 to {layers}, or {-layers - 1} to -1 from the end"
        raise Refusal(f"layer={layer}: the network has layers {known}")
    for name in ("anchor_rank", "residual_rank"):
        if settings.get(name, 1) > width:
            raise Refusal(f"{name}={settings[name]}: hidden states have {width} dimensions")
