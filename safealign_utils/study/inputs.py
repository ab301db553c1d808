"""What a run on real text names: pairs, model, scorers, prompts, checked before a kernel starts."""

import contextlib
import tempfile

from ..engine import boundary
from . import records
from .settings import OWN, PATHS, Refusal, check_network

FOLDS = 3  # of prompts, for cross-fitted labels
LARGE = 10**7  # weights: a model as large was trained before, by somebody
HIGH = 1e-4  # a rate that takes all of them apart


def check(settings, profile=()):
    """Content hashes {parameter: hash} of what the settings name. Raises Refusal.

    `profile` names the settings that nobody gave: those of the made world do not suit a pretrained
    model.
    """
    if "model" in settings and "label" not in settings:  # which is asked of pairs
        return _answer_sets(settings, profile)
    if not settings.get("data"):
        return {}
    with _naming(settings):
        return _real_text(settings, profile)


@contextlib.contextmanager
def _naming(settings):
    """Call prompts by the parameter that names them, and whatever has no name by the data's."""
    what = "data" if settings.get("data") else "model"
    with boundary.reading(f"{what}={boundary.shown(settings[what])}", "give others"):
        try:
            yield
        except ValueError as error:
            message = str(error)
            message = f"eval_{message}" if message.startswith("prompts=") else message
            if message == str(error):
                raise
            raise Refusal(message) from error


def _real_text(settings, profile):
    scratch = settings["model"] == "scratch"
    tokenizer = None if scratch else _check_model(settings, profile)
    parts = _check_pairs(settings, tokenizer)
    _check_scorers(settings)
    prompts = None
    if settings.get("eval_prompts"):
        prompts = _check_eval_prompts(settings, tokenizer, parts[0])
    _check_categories(settings.get("heldout_categories", ()), parts, prompts)
    return {name: records.content(*what) for name, *what in _named(settings)}


def _answer_sets(settings, profile):
    """The same of a notebook on answer sets, its own or those of `data`, that takes a model."""
    from ..real.labelled_sets import from_pairs

    if settings["model"] == "scratch":
        raise Refusal("model='scratch': this notebook needs a pretrained model; use smollm2")
    with _naming(settings):
        tokenizer = _check_model(settings | {"revision": ""}, profile)
        if settings.get("data"):
            sets = from_pairs(settings["data"], tokenizer)
            asked = [prompt.text for prompt in sets.prompts]
            _check_template(f"data={settings['data']}", asked, settings, tokenizer)
        return {name: records.content(*what) for name, *what in _named(settings)}


def commits(settings):
    """The commits {parameter: hash} of what came from a hub, those that are known."""
    from ..real import hub
    from ..real.sources import sources

    found = {}
    for name, value, kind, revision in _named(settings):
        for _, id in sources(value, name) if kind == "dataset" else [("", value)]:
            found |= {f"{name}: {id}": hub.commit(id, kind, revision)}
    return {name: commit for name, commit in found.items() if commit}


def _named(settings):
    """(parameter, value, kind of hub id, revision) of what the settings take from outside."""
    from ..real.prompts import SETS

    for name in PATHS:
        value, kind = settings.get(name, ""), "model" if name.endswith("model") else "dataset"
        revision = settings.get("revision", "") if name in ("data", "model") else ""
        if name == "eval_prompts" and value in SETS:
            value, revision = SETS[value].hub, SETS[value].revision
        if value and value not in OWN.get(name, ()):
            yield name, value, kind, revision


def _check_model(settings, profile=()):
    from ..real.models import check_model

    asked = dict(revision=settings["revision"], template=settings.get("template", "auto"))
    asked |= {name: settings.get(name, 0) for name in ("max_length", "new_tokens")}
    opened = check_model(settings["model"], **asked)
    config = opened.config
    check_network(settings, layers=config.num_hidden_layers, width=config.hidden_size)
    if opened.count() >= LARGE:
        _check_defaults(settings, profile)
    return opened.tokenizer


def _check_defaults(settings, profile):
    """Refuse the profile's float64, and its rate on all weights, for a pretrained model."""
    what, by_name = f"for model={settings['model']!r}", "is the profile's, made for small networks"
    if "dtype" in profile and settings["dtype"] == "float64":
        fix = "give dtype=bfloat16 or float32 (float64 by name is taken)"
        raise Refusal(f"dtype='float64' {what}: {by_name}; {fix}")
    rate = settings["learning_rate"]
    if "learning_rate" in profile and rate >= HIGH and not settings.get("lora"):
        fix = "give learning_rate=1e-5 or so, or lora=16 (a rate by name is taken)"
        raise Refusal(f"learning_rate={rate:g} {what}: {by_name}; {fix}")


def _check_pairs(settings, tokenizer):
    from .. import pairs
    from ..methods.safedpo import transform
    from ..real import read_pairs

    named = dict(revision=settings["revision"], tokenizer=tokenizer)
    loaded = read_pairs.load_pairs(settings["data"], **named)
    labelled = pairs.label(loaded, settings["label"])
    how = dict(
        heldout=settings.get("heldout", 0.0), categories=settings.get("heldout_categories", ())
    )
    training, test, _ = pairs.split_pairs(labelled, **how)
    training = pairs.some_of_every_source(training, settings["pairs"])
    prompts = [*training.prompt, *test.prompt]
    _check_template(f"data={settings['data']}", prompts, settings, tokenizer)
    if "safedpo" in settings.get("parts", ()):  # asked for by name
        transform(pairs.with_safety(training))
    _check_responses(settings, tokenizer, (training, test))
    _check_probes((training, test), settings)
    _check_fits(training, settings)
    if settings.get("sft_steps") and not pairs.best_safe(pairs.split_pairs(loaded, **how)[0]):
        why = "no training prompt has a response that no label calls unsafe; use 0"
        raise Refusal(f"sft_steps={settings['sft_steps']}: {why}")
    if "cdpo" in settings.get("parts", ()):
        for name, why in unlabelled(training, settings).items():
            raise Refusal(f"{name}={settings[name]!r}: no training pair {why}")
    return training, test


def _check_responses(settings, tokenizer, tables):
    """That a chat template writes every response as it is."""
    from .. import pairs, templates

    template = settings.get("template", "auto")
    if tokenizer is not None and templates.check_template(tokenizer, template) == "chat":
        texts = [text for table in tables for name in pairs.TEXT[1:] for text in table[name]]
        templates.chat_answers(tokenizer, list(dict.fromkeys(texts)))


def _check_categories(names, tables, prompts):
    """Refuse a category that neither pairs nor prompts have."""
    tables = [*tables] if prompts is None else [*tables, prompts]
    known = sorted(set().union(*(table.category for table in tables)) - {""})
    for name in names:
        if name not in known:
            fix = f"they have {boundary.some(known, 40)}" if known else "they have none"
            what = f"heldout_categories={boundary.shown(name)}"
            raise Refusal(f"{what}: no category of pairs or prompts; {fix}")


def _check_probes(tables, settings):
    """Refuse probes where too few prompts of a split have their labels, or all of them the same
    one: heads are fitted to the training pairs, and for the judges to the held-out ones."""
    for kind in ("reward", "cost"):
        name = f"{kind}_model"
        if settings.get(name) != "probe":
            continue
        without = [name in unlabelled(table, settings) for table in tables]
        if all(without):
            continue
        from ..real import probe

        for table, is_without in zip(tables, without):
            prompts = 0 if is_without else probe.labelled(kind, table).prompt.nunique()
            why = f"{prompts} prompts of a split have its labels, {probe.FOLDS} are needed"
            if prompts >= probe.FOLDS:
                why = "the responses of a split have all the same safety label"
            if prompts < probe.FOLDS or not probe.tells(kind, table):
                fix = f"give more pairs, heldout=0.3 or so, or name a {name}"
                raise Refusal(f"{name}='probe': {why}; {fix}")


def _check_fits(training, settings):
    """Refuse cross-fitted labels of too few prompts, and a cost loss whose unit no pair has."""
    if settings.get("cross_fitted") and (prompts := training.prompt.nunique()) < FOLDS:
        why = f"labels are fitted to {FOLDS} folds of prompts, the training pairs have {prompts}"
        raise Refusal(f"cross_fitted=true: {why}; give more pairs, or leave it out")
    loss = settings.get("cost_loss", "auto")
    if loss in ("auto", "safe_rlhf") or "cost_model" in unlabelled(training, settings):
        return
    from ..real import scorer_training

    with boundary.reading(f"cost_loss={loss!r}", "use safe_rlhf"):
        if settings["cost_model"] == "kit":
            scorer_training.check_unit(training, loss, "cost_loss")


def unlabelled(table, settings):
    """{parameter: what is missing, and the fix} of the kit's scorers that pairs cannot train."""
    from ..pairs import SAFE

    needed = {
        "reward_model": (["better_response_id"], "says which response is better"),
        "cost_model": (list(SAFE), "has a safety label"),
    }
    return {
        name: f"{words}; name a {name}"
        for name, (columns, words) in needed.items()
        if settings[name] in OWN[name] and table[columns].isna().all(axis=None)
    }


def _check_scorers(settings):
    from ..real.scorer_checkpoints import check_scorer

    for kind in ("reward", "cost"):
        name = f"{kind}_model"
        if settings.get(name, "kit") not in OWN[name]:
            check_scorer(settings[name], kind=kind)


def _check_eval_prompts(settings, tokenizer, training):
    """The prompts of the evaluation, that some are not trained on, and that the template can write
    their turns."""
    from ..real.prompts import load_prompts, unseen

    what = f"eval_prompts={settings['eval_prompts']}"
    table = load_prompts(settings["eval_prompts"], tokenizer=tokenizer)
    if unseen(table, training, settings.get("heldout_categories", ())).empty:
        raise Refusal(f"{what}: every prompt is trained on; give others, or heldout=0.3 or so")
    if table.turns.map(len).max() > 1 and settings["template"] == "safe_rlhf":
        raise Refusal(f"{what}: has several turns, template='safe_rlhf' takes one; use dialogue")
    _check_template(what, table.prompt, settings, tokenizer)
    _check_judge_files(table, settings.get("judge_files", ""))
    return table


def _check_judge_files(table, forms):
    """Refuse forms of judges' files that cannot hold answers to these prompts: they are tried."""
    from ..real.judge_files import WRITERS

    said = table.assign(answers=[("",) * len(turns) for turns in table.turns])
    for form in filter(None, forms.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            try:
                WRITERS[form](folder, said, "model")
            except ValueError as error:
                raise Refusal(f"judge_files={forms!r}: {form}: {error}") from None


def _check_template(what, prompts, settings, tokenizer):
    from .. import templates

    template = settings.get("template", "auto")
    if template == "auto" or tokenizer is None and template == "chat":
        template = "dialogue" if tokenizer is None else templates.check_template(tokenizer)
    try:
        templates.write_prompts(list(dict.fromkeys(prompts)), tokenizer, template)
    except ValueError as error:
        raise Refusal(f"{what}: {error}") from None
