"""Scorers from checkpoints: a reward or a cost of responses, (prompts, responses) -> float64 [N].

Two kinds are read. The score models of Safe RLHF (arXiv 2310.12773: PKU-Alignment's beaver-7b reward and cost,
v1.0 and unified) by a class of our own, since plain loading drops a head's bias and its normaliser in silence;
and any sequence-classification model with one label. A checkpoint with missing or unexpected weights, a padding
token that is the end-of-sequence token, and a sign that fails on known pairs are refused. Scores are kept on
disk by content, in blocks, so that a scoring that was cut off goes on where it stopped.

The beaver weights are non-commercial: nothing here bundles them or takes them by default.
"""

import json
import re
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.nn.functional import linear
from transformers import LlamaModel, LlamaPreTrainedModel

from ..engine import distributed
from ..policy import NOT_CONTENT, weights_hash
from ..templates import render, turns
from . import weights
from .scorer import KNOWN_PAIRS, Scorer, check_sign

KINDS = ("reward", "cost")
SAFE_RLHF = (
    "BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:{response}"  # no space before the response
)


class BeaverScorer(LlamaPreTrainedModel):
    """Safe RLHF's score model: a Llama and a linear head, read at the last attended position.

    With `do_normalize` a reward is shifted and scaled by the checkpoint's running mean and variance, a cost only
    scaled, so that its threshold stays 0. Releases differ in what the configuration says: the head's bias is
    `score_bias` or `bias`, and present where neither is named, as in Safe RLHF's own code.
    """

    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        bias = getattr(config, "score_bias", getattr(config, "bias", True))
        self.score_head = torch.nn.Linear(config.hidden_size, 1, bias=bias)
        unused = ["count"]  # how many scores the running mean has seen
        if getattr(config, "do_normalize", False):
            self.normalizer = torch.nn.Module()
            self.normalizer.register_buffer("mean", torch.zeros(1))
            self.normalizer.register_buffer("var", torch.ones(1))
        else:
            unused += ["mean", "var"]
        self._keys_to_ignore_on_load_unexpected = [rf"^normalizer\.({'|'.join(unused)})$"]
        self.post_init()

    def forward(self, input_ids, attention_mask):
        """Scores float32 [B] of ids [B, T]; the mask [B, T] is 1 at tokens, 0 at padding on either side."""
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        out = self.model(
            input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False
        )
        last = attention_mask.shape[1] - 1 - attention_mask.flip(1).argmax(1)
        hidden = out.last_hidden_state[torch.arange(len(last), device=last.device), last].float()
        head = self.score_head
        score = linear(
            hidden, head.weight.float(), None if head.bias is None else head.bias.float()
        )[:, 0]
        if not getattr(self.config, "do_normalize", False):
            return score
        mean, var = self.normalizer.mean.float(), self.normalizer.var.float()
        shift = mean if self.config.score_type == "reward" else 0.0
        return (score - shift) / (var.sqrt() + 1e-8)


# ---------------------------------------------------------------- loading
def load_scorer(
    name,
    *,
    kind,
    revision="",
    dtype="float32",
    device="cpu",
    batch_size=16,
    max_length=512,
    template="auto",
    sign_check=True,
    known_pairs=None,
):
    """A `Scorer` from a folder or a hub id: Safe RLHF's score model, or sequence classification with one label.

    `kind` is reward or cost; what a checkpoint says of itself must agree. `template`: "safe_rlhf" (the conversation
    format of the beaver models, ended by the end-of-sequence token), "chat" (the tokenizer's chat template), or a
    text with {prompt} and {response}; "auto" is safe_rlhf for a beaver checkpoint, else chat. Texts longer than
    `max_length` tokens lose the prompt's beginning and the response's end. `known_pairs` (prompt, lower, higher)
    replaces ours, most of which must be ordered rightly; `sign_check=False` switches that off.

    Raises ValueError for anything that cannot be read safely: no safetensors, missing or unexpected weights, a
    padding token that is missing or is the end of the sequence, more than one label, another kind, a wrong sign.

    *Differs from the paper's code:* over-long texts keep their last token; it cuts it off.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype={dtype!r}: choose float32 or bfloat16")
    what, id, options, config, beaver, pad, encode = check_scorer(
        name, kind=kind, revision=revision, max_length=max_length, template=template
    )
    with weights.loading(what, name, revision):
        model, report = _network(config, beaver).from_pretrained(
            id,
            config=config,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            **weights.REPORTED,
            **options,
        )
    weights.check_report(what, type(model), report)
    model.config.get_text_config().pad_token_id = (
        pad  # the head of sequence classification looks for it in the ids
    )
    device = distributed.own_device(device)
    model.eval().to(device)

    def forward(rows):
        out = model(**{k: v.to(device) for k, v in padded([row[0] for row in rows], pad).items()})
        return out if beaver else out.logits[:, 0].float()

    def made_of():
        return [weights_hash(model, _said(model.config)), dtype, torch.device(device).type]

    scorer = Scorer(name, kind, made_of, encode, forward, batch_size)
    if sign_check:
        check_sign(scorer, known_pairs or KNOWN_PAIRS[kind])
    return scorer


def check_scorer(name, *, kind, revision="", max_length=512, template="auto"):
    """What can be told without the weights: refuses what `load_scorer` could not use, returns what it goes on with."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: choose reward or cost")
    what = f"{kind}_model={name!r}"
    id, options = _source(what, name, revision)
    with weights.loading(what, name, revision):
        weights.check_no_adapter(what, id, options)
        if Path(id).is_dir():
            weights.weight_files(what, id)
        config = transformers.AutoConfig.from_pretrained(id, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(id, **options)
    weights.check_not_quantised(what, config)
    architecture = (config.architectures or [""])[0]
    beaver = (
        architecture.endswith("ForScore")
        or hasattr(config, "score_type")
        or hasattr(config, "score_dim")
    )
    if beaver:
        _check_beaver(what, config, kind)
    elif not architecture.endswith("ForSequenceClassification"):
        raise ValueError(
            f"{what}: {architecture or 'this'} is no reward model; use one of sequence classification"
        )
    elif config.num_labels != 1:
        raise ValueError(
            f"{what}: it has {config.num_labels} labels; a score is one number, so one label"
        )
    pad = _pad_id(what, tokenizer, config)
    weights.check_ids(what, tokenizer, config)
    room = weights.positions(config) or max_length
    if not 16 <= max_length <= room:
        raise ValueError(
            f"max_length={max_length}: a number of tokens from 16 to the model's {room} ({what})"
        )
    if Path(id).is_dir():
        with weights.loading(what, name, revision):
            weights.check_files(what, id, config, _network(config, beaver))
    template = ("safe_rlhf" if beaver else "chat") if template == "auto" else template
    return what, id, options, config, beaver, pad, _encoder(what, tokenizer, template, max_length)


def padded(rows, pad_id, *, side="right"):
    """Rows of ids (int arrays) as input_ids and attention_mask, int64 [B, T]."""
    T = max(map(len, rows))
    ids, mask = np.full((len(rows), T), pad_id), np.zeros((len(rows), T), dtype=np.int64)
    for b, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(T - len(row), T)
        ids[b, at], mask[b, at] = row, 1
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


# ---------------------------------------------------------------- helpers
def _source(what, name, revision):
    """(id, options of from_pretrained) of a folder or a hub id; refuses what is neither."""
    from . import hub

    id = hub.pinned(name)[0]
    if not Path(id).is_dir() and not re.fullmatch(r"\w[\w.-]*/[\w.-]+", id):
        raise ValueError(f"{what}: no such folder; give a folder or a hub id as owner/name")
    return hub.located(name, revision, parameter=what.partition("=")[0])


def _check_beaver(what, config, kind):
    says = config.score_type = getattr(config, "score_type", kind)
    if says != kind:
        raise ValueError(
            f"{what}: its configuration says score_type={says!r}; it is no {kind} model, use it as {says}"
        )
    if config.model_type != "llama":
        raise ValueError(
            f"{what}: a {config.model_type} backbone; the score models of Safe RLHF read here are Llamas"
        )
    if getattr(config, "score_dim", 1) != 1:
        raise ValueError(f"{what}: score_dim={config.score_dim}; a score is one number")


def _pad_id(what, tokenizer, config):
    pad, vocabulary = tokenizer.pad_token_id, config.get_text_config().vocab_size
    if pad is None or pad == tokenizer.eos_token_id:
        raise ValueError(
            f"{what}: its padding token is {'missing' if pad is None else 'the end-of-sequence token'}, so that the "
            "end of a text cannot be told from padding; set a pad_token of its own in its tokenizer_config.json"
        )
    if pad >= vocabulary:
        raise ValueError(
            f"{what}: pad_token_id={pad} is outside the model's vocabulary of {vocabulary}"
        )
    return pad


def _network(config, beaver):
    """The class that reads the checkpoint."""
    if beaver:
        return BeaverScorer
    with torch.device("meta"):
        return type(transformers.AutoModelForSequenceClassification.from_config(config))


def _said(config):
    return json.dumps(
        {k: v for k, v in config.to_dict().items() if k not in NOT_CONTENT},
        sort_keys=True,
        default=str,
    )


def _encoder(what, tokenizer, template, max_length):
    """The function (prompts, responses) -> N rows [ids] of a template."""
    if template == "chat":
        if not tokenizer.chat_template:
            raise ValueError(
                f"{what}: no chat template; set template='...{{prompt}}...{{response}}' as it was trained"
            )
        said = lambda y: [{"role": "assistant", "content": y}]
        head, whole = (
            lambda x: render(tokenizer, turns(x)),
            lambda x, y: render(tokenizer, turns(x) + said(y), ask=False),
        )
        own = False  # the template writes all special tokens
    else:
        own = template != "safe_rlhf"  # the tokenizer's own special tokens
        start, between, end = _parts(SAFE_RLHF if template == "safe_rlhf" else template)
        head, whole = lambda x: start + x + between, lambda x, y: start + x + between + y + end
    ids_of = lambda texts: tokenizer(texts, add_special_tokens=own)["input_ids"]
    bos = (
        [tokenizer.bos_token_id]
        if template == "safe_rlhf" and tokenizer.bos_token_id is not None
        else []
    )
    eos = [tokenizer.eos_token_id] if template == "safe_rlhf" else []

    def encode(prompts, responses):
        rows = [
            np.array(bos + ids + eos)
            for ids in ids_of([whole(x, y) for x, y in zip(prompts, responses)])
        ]
        for i, ids in enumerate(rows):
            if len(ids) > max_length:
                rows[i] = _cut(ids, len(bos) + len(ids_of([head(prompts[i])])[0]), max_length)
        return [[ids] for ids in rows]

    return encode


def _parts(template):
    found = re.fullmatch(r"(.*)\{prompt\}(.*)\{response\}(.*)", template, flags=re.DOTALL)
    if not found:
        raise ValueError(
            f"template={template!r}: auto, safe_rlhf, chat, or a text with {{prompt}} and {{response}}"
        )
    return found.groups()


def _cut(ids, n_prompt, max_length):
    """The first and the last token, and between them the prompt's end and the response's beginning."""
    prompt, response = ids[1:n_prompt], ids[n_prompt:-1]
    prompt = prompt[-max(max_length - 2 - len(response), (max_length - 2) // 2) :]
    return np.concatenate([ids[:1], prompt, response[: max_length - 2 - len(prompt)], ids[-1:]])
