"""Scorers from checkpoints: a reward or a cost of responses, (prompts, responses) -> float64 [N].

Read are the score models of Safe RLHF (arXiv 2310.12773: PKU-Alignment's beaver-7b reward and cost,
v1.0 and unified), by a class of our own, since plain loading drops a head's bias and its normaliser
in silence; and any sequence-classification model with one label. Refused: missing or unexpected
weights, a padding token that is the end-of-sequence token, a sign that fails on known pairs.

The beaver weights are non-commercial: nothing here bundles them or takes them by default.
"""

import functools
import json
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from torch.nn.functional import linear
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaModel, LlamaPreTrainedModel

from ..engine import boundary, distributed
from ..engine.boundary import Refusal
from ..policy import NOT_CONTENT, weights_hash
from ..templates import render, turns
from . import weights
from .scorer import KNOWN_PAIRS, Scorer, check_sign

SAFE_RLHF = "BEGINNING OF CONVERSATION: USER: {} ASSISTANT:"  # no space before the response
LONGEST = 512  # tokens of prompt and response in their template


class BeaverScorer(LlamaPreTrainedModel):
    """Safe RLHF's score model: a Llama and a linear head, read at the last attended position.

    With `do_normalize` a reward is shifted and scaled by the checkpoint's running mean and
    variance, a cost only scaled, so that its threshold stays 0. The head's bias is `score_bias` or
    `bias`, and present where neither is named, as in Safe RLHF's own code.
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
        """Scores float32 [B] of ids [B, T]; the mask [B, T] is 1 at tokens, 0 at padding."""
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        given = dict(attention_mask=attention_mask, position_ids=positions, use_cache=False)
        hidden = self.model(input_ids, **given).last_hidden_state
        last = attention_mask.shape[1] - 1 - attention_mask.flip(1).argmax(1)
        hidden = hidden[torch.arange(len(last), device=last.device), last].float()
        bias = self.score_head.bias
        bias = None if bias is None else bias.float()
        score = linear(hidden, self.score_head.weight.float(), bias)[:, 0]
        if not getattr(self.config, "do_normalize", False):
            return score
        mean, var = self.normalizer.mean.float(), self.normalizer.var.float()
        shift = mean if self.config.score_type == "reward" else 0.0
        return (score - shift) / (var.sqrt() + 1e-8)


@boundary.reader("{kind}_model", weights.FIX)
def load_scorer(name, *, kind, dtype="float32", device="cpu", sign_check=True):
    """A `Scorer` from a folder or hub id: Safe RLHF's score model, or a classifier with one label.

    `name` may be owner/name@revision. `kind` is reward or cost; what a checkpoint says of itself
    must agree. A beaver reads Safe RLHF's conversation format, ended by the end-of-sequence token,
    any other its tokenizer's chat template. Texts longer than LONGEST tokens lose the prompt's
    beginning and the response's end. Raises ValueError for what cannot be read safely: no
    safetensors, missing or unexpected weights, a padding token that is missing or ends the
    sequence, several labels, another kind, and (`sign_check`) a wrong sign.

    *Differs from the paper's code:* over-long texts keep their last token; it cuts it off.
    """
    if dtype not in ("float32", "bfloat16"):
        raise Refusal(f"dtype={dtype!r}: choose float32 or bfloat16")
    opened, encode = check_scorer(name, kind=kind)
    model = opened.load(dtype=getattr(torch, dtype)).to(distributed.own_device(device))
    # The head of sequence classification looks for padding in the ids.
    model.config.get_text_config().pad_token_id = opened.tokenizer.pad_token_id

    def made_of():
        said = {k: v for k, v in model.config.to_dict().items() if k not in NOT_CONTENT}
        said = json.dumps(said, sort_keys=True, default=str)
        return [weights_hash(model, said), dtype, model.device.type]

    scorer = Scorer(name, kind, made_of, encode, functools.partial(_scores, model))
    if sign_check:
        check_sign(scorer)
    return scorer


def _scores(model, rows):
    """Scores [B] of rows of ids, padded on the right."""
    ids = [torch.from_numpy(row[0]) for row in rows]
    mask = [torch.ones_like(row) for row in ids]
    pad = model.config.get_text_config().pad_token_id
    ids = pad_sequence(ids, batch_first=True, padding_value=pad).to(model.device)
    mask = pad_sequence(mask, batch_first=True).to(model.device)
    out = model(input_ids=ids, attention_mask=mask)
    return out if isinstance(model, BeaverScorer) else out.logits[:, 0].float()


@boundary.reader("{kind}_model", weights.FIX)
def check_scorer(name, *, kind):
    """(`weights.Opened`, `Encoder`) of a scorer: refuses by headers what could not be used."""
    if kind not in KNOWN_PAIRS:
        raise Refusal(f"kind={kind!r}: choose reward or cost")
    network_of = functools.partial(_network, kind, f"{kind}_model={name!r}")
    opened = weights.open_model(f"{kind}_model", name, "", network_of)
    what, tokenizer = opened.what, opened.tokenizer
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        why = "missing" if tokenizer.pad_token_id is None else "the end-of-sequence token"
        why = f"its padding token is {why}, so that no text's end can be told from padding"
        raise Refusal(f"{what}: {why}; set a pad_token of its own in its tokenizer_config.json")
    is_chat = opened.network is not BeaverScorer
    if is_chat and not tokenizer.chat_template:
        fix = "save the one that it was trained with in its tokenizer (chat_template)"
        raise Refusal(f"{what}: no chat template; {fix}")
    longest = min(LONGEST, weights.positions(opened.config) or LONGEST)
    return opened, Encoder(tokenizer, is_chat, longest)


def _network(kind, what, config):
    """The class that reads a checkpoint's weights; refuses what is no scorer of this kind."""
    architecture = (config.architectures or [""])[0]
    named = hasattr(config, "score_type") or hasattr(config, "score_dim")
    if architecture.endswith("ForScore") or named:
        _check_beaver(kind, what, config)
        return BeaverScorer
    if not architecture.endswith("ForSequenceClassification"):
        why = f"{architecture or 'this'} is no reward model"
        raise Refusal(f"{what}: {why}; use one of sequence classification")
    if config.num_labels != 1:
        why = f"it has {config.num_labels} labels"
        raise Refusal(f"{what}: {why}; a score is one number, so one label")
    return weights.network_class(transformers.AutoModelForSequenceClassification, config)


def _check_beaver(kind, what, config):
    says = config.score_type = getattr(config, "score_type", kind)
    if says != kind:
        why = f"its configuration says score_type={says!r}"
        raise Refusal(f"{what}: {why}; it is no {kind} model, use it as {says}")
    if config.model_type != "llama":
        why = f"a {config.model_type} backbone"
        raise Refusal(f"{what}: {why}; the score models of Safe RLHF read here are Llamas")
    if getattr(config, "score_dim", 1) != 1:
        raise Refusal(f"{what}: score_dim={config.score_dim}; a score is one number")


@dataclass(frozen=True)
class Encoder:
    """(prompts, responses) -> N rows [ids], each cut to `max_length` tokens."""

    tokenizer: transformers.PreTrainedTokenizerBase
    is_chat: bool
    max_length: int

    def __call__(self, prompts, responses):
        rows = self.ids([self.text(x, y) for x, y in zip(prompts, responses)])
        return [[self.cut(ids, prompt)] for ids, prompt in zip(rows, prompts)]

    def text(self, prompt, response=None):
        """What is scored; without a response what stands before it."""
        if not self.is_chat:
            return SAFE_RLHF.format(prompt) + (response or "")
        reply = [] if response is None else [{"role": "assistant", "content": response}]
        return render(self.tokenizer, turns(prompt) + reply, ask=response is None)

    def ids(self, texts):
        """Arrays of ids: a chat template writes BOS and EOS itself, else they are around a text."""
        t = self.tokenizer
        rows = t(texts, add_special_tokens=False)["input_ids"]
        if not self.is_chat:
            bos = [] if t.bos_token_id is None else [t.bos_token_id]
            rows = [[*bos, *row, t.eos_token_id] for row in rows]
        return [np.array(row) for row in rows]

    def cut(self, ids, prompt):
        """First and last token, and between them the prompt's end and the response's beginning."""
        if len(ids) <= self.max_length:
            return ids
        n_prompt = len(self.ids([self.text(prompt)])[0]) - (not self.is_chat)
        prompt, response, room = ids[1:n_prompt], ids[n_prompt:-1], self.max_length - 2
        prompt = prompt[-max(room - len(response), room // 2) :]
        return np.concatenate([ids[:1], prompt, response[: room - len(prompt)], ids[-1:]])
