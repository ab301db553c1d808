"""What a run on real text names (pairs, model, scorers, prompts), opened and checked before a kernel starts."""

from . import records
from .parameters import Refusal, check_network
from .rules import NEEDS_REWARD, NEEDS_SAFETY


def check(notebook, settings):
    """Content hashes {parameter: hash} of what the settings name. Raises Refusal for what cannot be used."""
    if settings["data"] == "world":
        return {}
    try:
        _check_pairs(notebook, settings)
        if settings["model"] != "scratch":
            _check_model(settings)
        for kind in ("reward", "cost"):
            if settings.get(f"{kind}_model", "kit") != "kit":
                from ..real.scorers import check_scorer

                check_scorer(settings[f"{kind}_model"], kind=kind)
        if settings.get("eval_prompts"):
            from ..real.prompts import load_prompts

            several = load_prompts(settings["eval_prompts"]).turns.map(len).max() > 1
            if several and settings["template"] == "safe_rlhf":
                what = f"eval_prompts={settings['eval_prompts']!r}"
                raise Refusal(f"{what}: has several turns, template='safe_rlhf' takes one; use template=dialogue")
    except Refusal:
        raise
    except ValueError as error:
        raise Refusal(str(error)) from None
    return {name: records.content(value, kind, revision) for name, value, kind, revision in _named(settings)}


def commits(settings):
    """The commits {parameter: hash} of what came from a hub, those that are known."""
    from ..real import hub

    found = {}
    for name, value, kind, revision in _named(settings):
        for part in str(value).split(","):
            id = part.rpartition("=")[2].strip()
            found |= {f"{name}: {id}": hub.commit(id, kind, revision)}
    return {name: commit for name, commit in found.items() if commit}


def _named(settings):
    """(parameter, value, kind of hub id, revision) of what the settings take from outside."""
    from ..real.prompts import SETS

    kinds = dict(data="dataset", model="model", reward_model="model", cost_model="model", eval_prompts="dataset")
    for name, kind in kinds.items():
        value, revision = settings.get(name, ""), settings["revision"] if name in ("data", "model") else ""
        if name == "eval_prompts" and value in SETS:
            value, revision = SETS[value].hub, SETS[value].revision
        if value not in ("world", "scratch", "kit", ""):
            yield name, value, kind, revision


def _check_pairs(notebook, settings):
    from .. import pairs
    from ..methods.safedpo import transform

    rows = pairs.label(pairs.load_pairs(settings["data"], revision=settings["revision"]), settings["label"])
    training = pairs.some_of_every_source(pairs.split_pairs(rows)[0], settings["pairs"])
    if notebook in NEEDS_SAFETY:
        transform(pairs.with_safety(training))
    if notebook in NEEDS_REWARD:
        unknown = lambda columns: training[list(columns)].isna().all(axis=None)
        if settings["reward_model"] == "kit" and unknown(["better_response_id"]):
            raise Refusal("reward_model='kit': no training pair says which response is better; name a reward model")
        if settings["cost_model"] == "kit" and unknown(pairs.SAFE):
            raise Refusal("cost_model='kit': no training pair has a safety label; name a cost model")


def _check_model(settings):
    from ..policy import check_model

    asked = dict(revision=settings["revision"], template=settings.get("template", "auto"))
    asked |= {name: settings.get(name, 0) for name in ("max_length", "new_tokens")}
    config = check_model(settings["model"], **asked)
    check_network(settings, layers=config.num_hidden_layers, width=config.hidden_size)
