"""Pairs for TRL, and a recipe that runs SafeDPO and Selective-DPO inside TRL's `DPOTrainer`.

TRL trains what `train.align` trains, loss by loss (a test), where

- both read the same ids: `tokens_to_trl` hands over the kit's. TRL's own tokenising joins prompt
  and response before it cuts them into tokens, leaves the template to the prompt's text, and adds a
  beginning-of-sequence token only where the tokenizer does so by itself (GPT-2's does not).
- the rows come in the same order: `dataset.select(train.batch_order(...).ravel())`.
- the settings are `SAME`, and `beta`, `max_steps`, `per_device_train_batch_size`, `seed` as here.
- the optimiser is that of `optimizers`: TRL's own cosine starts its warm-up at a rate of 0.
- weights and network are in float32. In both `bf16` leaves the weights there; that is not compared.

Padding, gradient checkpointing, accumulation and the reference's log-probs computed beforehand
change nothing. The pairs of TRL's own data sets are read by `read_pairs.load_pairs`. TRL asks the
hub to count each trainer that is made; HF_HUB_DISABLE_TELEMETRY=1 stops that.
"""

import functools
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from .. import train
from ..methods.selective import TopTokens
from ..pairs import TEXT, chosen_rejected
from ..templates import turns

VERSION = "1.16.0"
SAME = dict(
    loss_type=["sigmoid"],
    label_smoothing=0.0,
    disable_dropout=True,
    bf16=False,
    max_grad_norm=train.CLIP,
    max_length=None,
    train_sampling_strategy="sequential",
)
NEEDED = dict(  # by the levers
    loss_type=["sigmoid"],
    f_divergence_type="reverse_kl",
    ld_alpha=None,
    use_weighting=False,
    truncation_mode="keep_start",
)
SIDES = ("chosen", "rejected")


def to_trl(table, *, conversational=False):
    """A labelled table as a `datasets.Dataset` of N rows in TRL's prompt, chosen and rejected.

    Texts stand as they are; `conversational` makes messages of them, so that TRL applies the chat
    template: the turns of a dialogue, else one question. The other columns keep their names and
    speak of responses 0 and 1 as in the table; `chosen_id` says which of them is TRL's chosen,
    `margin` is what `safealign_trainer` reads (TRL's own trainer does not). Raises ValueError for
    an unlabelled table and for soft labels.
    """
    from datasets import Dataset

    if "chosen" not in table:
        raise ValueError("table: no column chosen; label the pairs first, with pairs.label(table)")
    _check_hard(table.p.to_numpy(float))
    prompts = list(table.prompt)
    answers = chosen_rejected(table, table.response_0, table.response_1)
    if conversational:
        prompts = [turns(x) for x in prompts]
        answers = [[[{"role": "assistant", "content": y}] for y in side] for side in answers]
    rest = table.drop(columns=[*TEXT, "chosen", "p"]).assign(chosen_id=table.chosen.astype(int))
    columns = {"prompt": prompts, **dict(zip(SIDES, map(list, answers)))}
    columns |= {c: rest[c].array for c in rest}
    return Dataset.from_pandas(pd.DataFrame(columns), preserve_index=False)


def tokens_to_trl(tokens, *, kept=None):
    """Tokenised pairs as the `Dataset` of N rows of ids that `DPOTrainer` makes of texts, and
    `margin`.

    `kept` optionally fixes which response tokens count: a `selective.TokenTable` of 1 and 0, which
    become the columns chosen_kept and rejected_kept. Raises ValueError for soft labels.
    """
    from datasets import Dataset

    _check_hard(tokens.p)
    columns = {"prompt_ids": tokens.prompts}
    for side in SIDES:
        columns[f"{side}_ids"] = getattr(tokens, side)
        if kept is not None:
            columns[f"{side}_kept"] = getattr(kept, side)
    columns = {c: [np.asarray(y).astype(int).tolist() for y in columns[c]] for c in columns}
    return Dataset.from_dict(columns | {"margin": tokens.margin.tolist()})


def _check_hard(p):
    if (p != 1).any():
        row = int(np.flatnonzero(p != 1)[0])
        why = f"p={p[row]:g} on pair {row}: TRL's chosen and rejected cannot say a probability"
        raise ValueError(f"{why}; use hard labels (pairs.label), or train with train.align")


def optimizers(model, *, steps, learning_rate):
    """(AdamW, schedule) of the kit's training loop, for `DPOTrainer`'s argument `optimizers`."""
    given = dict(lr=learning_rate, betas=train.BETAS, weight_decay=0.0)
    adamw = torch.optim.AdamW(model.parameters(), **given)
    return adamw, torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: train.rate_at(step, steps))


@functools.cache
def safealign_trainer():
    """TRL's `DPOTrainer` with the margin and the tokens as levers: the class `SafeAlignTrainer`.

    It takes what `DPOTrainer` takes (by name), data sets of `to_trl` or `tokens_to_trl`, and `keep`
    in [0, 1]:

    - SafeDPO (arXiv 2505.20065, Eq. 12): the column `margin`, delta (u_l - u_w) in the logit,
      outside beta.
    - Selective-DPO (arXiv 2507.07725): the top share `keep` of each response by the signed score
      against TRL's reference, found again in every step; or fixed tokens, the columns chosen_kept
      and rejected_kept.

    The loss itself is TRL's: a fixed mask goes into its `completion_mask`, a recomputed one onto
    its token log-probs, margin / beta onto the reference's sum of the chosen response. So in TRL's
    log rewards/chosen and rewards/margins are what is left after the margin, and rewards/accuracies
    counts the pairs won by more than it. Raises ValueError for another loss than sigmoid,
    ModuleNotFoundError without trl.
    """
    try:
        import trl
    except ImportError as error:
        fix = f"pip install trl=={VERSION} (Python 3.11 or later)"
        raise ModuleNotFoundError(f"trl is not installed; {fix}") from error
    if trl.__version__ != VERSION:
        why = f"trl {trl.__version__} is installed, the recipe is tested with {VERSION}"
        raise ValueError(f"{why}; install that one")
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    @dataclass
    class WithLevers(_Collator, DataCollatorForPreference):
        pass

    class SafeAlignTrainer(_Trainer, trl.DPOTrainer):
        collator = WithLevers

    return SafeAlignTrainer


class _Collator:
    """Added to TRL's collator: the margin, and fixed tokens in its completion mask."""

    def torch_call(self, examples):
        if "margin" not in examples[0]:
            raise ValueError("train_dataset: no column margin; use to_trl or tokens_to_trl")
        batch = super().torch_call(examples)
        batch["margin"] = torch.tensor([x["margin"] for x in examples])
        rows = [(x, side) for side in SIDES for x in examples]
        for mask, (x, side) in zip(batch["completion_mask"], rows):
            if f"{side}_kept" in x:
                kept, n = x[f"{side}_kept"], len(x[f"{side}_ids"])
                if len(kept) != n or not set(kept) <= {0, 1}:
                    words = f"give a 1 or a 0 for each of {n} response tokens"
                    raise ValueError(f"{side}_kept={kept}: {words}")
                mask[mask == 1] = torch.tensor(kept)[: int(mask.sum())]
        return batch


class _Trainer:
    """Added to TRL's trainer: the margin in the reference's sums, tokens by their score."""

    def __init__(self, model, *, args, train_dataset, keep=1.0, **others):
        needed = dict(NEEDED)
        if keep < 1 or "chosen_kept" in next(iter(train_dataset)):
            needed["precompute_ref_log_probs"] = False  # which keeps sums over all tokens
        for name, value in needed.items():
            if (found := getattr(args, name)) != value:
                raise ValueError(f"{name}={found!r}: these levers need {name}={value!r}")
        self.tokens = TopTokens(keep)
        super().__init__(model, args=args, train_dataset=train_dataset, **others)
        self.data_collator = self.collator(**vars(self.data_collator))

    def _prepare_dataset(self, dataset, *others):
        if "prompt_ids" in next(iter(dataset)):
            return dataset
        return super()._prepare_dataset(dataset, *others)

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            self._signature_columns += ["margin", *(f"{side}_kept" for side in SIDES)]

    def _compute_loss(self, model, inputs, return_outputs):
        inputs, reference = dict(inputs), self.ref_model or self.model
        margin = inputs.pop("margin")
        if self.tokens.keep < 1:
            model, sums = self._with_kept_tokens(model, reference, inputs)
        elif self.precompute_ref_logps:
            sums = [inputs[f"ref_{side}_logps"] for side in SIDES]
        else:
            sums = self.compute_ref_log_probs(reference, inputs)
        inputs["ref_chosen_logps"] = sums[0] + margin / self.beta
        inputs["ref_rejected_logps"] = sums[1]
        before = self.precompute_ref_logps
        self.precompute_ref_logps = True  # the sums stand in the batch
        try:
            return super()._compute_loss(model, inputs, return_outputs)
        finally:
            self.precompute_ref_logps = before

    def _with_kept_tokens(self, network, reference, inputs):
        """(a model that answers with the kept tokens' log-probs, the reference's sums of them)."""
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        mask, read = inputs["completion_mask"], []
        labels = given["input_ids"].masked_fill(mask == 0, -100)
        policy = network(**given, labels=labels, fused_lm_head=True)

        def ask_reference(**asked):
            read.append(reference(**asked))
            return read[0]

        def answer(**asked):
            return policy if asked.get("fused_lm_head") else network(**asked)

        self.compute_ref_log_probs(ask_reference, inputs)  # with an adapter off
        ref = read[0].log_probs
        ratio, mask = policy.log_probs.detach() - ref, mask[:, 1:] == 1
        kept = torch.cat(self.tokens(*ratio.chunk(2), *mask.chunk(2), rows=None))
        policy.log_probs = policy.log_probs * kept
        return answer, (ref * kept).sum(1).chunk(2)
