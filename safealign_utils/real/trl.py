"""Pairs to and from TRL, and a recipe that runs SafeDPO and Selective-DPO inside TRL's `DPOTrainer`.

TRL trains what `train.align` trains, loss by loss (a test), where

- both read the same ids: `tokens_to_trl` hands over the kit's. TRL's own tokenising joins prompt and response
  before it cuts them into tokens, leaves the template to the prompt's text, and adds a beginning-of-sequence
  token only where the tokenizer does so by itself (GPT-2's does not, `tokens.encode_prompts` does);
  `check_ids` compares the two.
- the rows come in the same order: `dataset.select(train.batch_order(...).ravel())`, read one after another.
- the settings are `SAME`, with `beta`, `max_steps`, `per_device_train_batch_size` and `seed` as here.
- the optimiser is that of `optimizers`: TRL's own cosine starts its warm-up at a rate of 0, one step behind.
- weights and network are in float32. In both `bf16` leaves the weights there; that case is not compared.

Padding, gradient checkpointing, accumulation and the reference's log-probs computed beforehand change nothing.
TRL asks the hub to count each trainer that is made; HF_HUB_DISABLE_TELEMETRY=1 stops that.
"""

import functools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .. import train
from ..methods.selective import TopTokens
from ..pairs import TEXT, chosen_rejected
from ..templates import dialogue, turns
from . import read_pairs

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


def _trl(exact=False):
    try:
        import trl
    except ImportError as error:
        raise ModuleNotFoundError(
            f"trl is not installed; pip install trl=={VERSION} (Python 3.11 or later)"
        ) from error
    if exact and trl.__version__ != VERSION:
        raise ValueError(
            f"trl {trl.__version__} is installed, the recipe is tested with {VERSION}; install that one"
        )
    return trl


# ---------------------------------------------------------------- pairs
def to_trl(table, *, conversational=False):
    """A labelled table as a `datasets.Dataset` in TRL's columns prompt, chosen and rejected, N rows.

    Texts stand as they are; `conversational` makes messages of them, so that TRL applies the chat template: the
    turns of a dialogue, else one question. The other columns keep their names and speak of responses 0 and 1 as in
    the table; `chosen_id` says which of them is TRL's chosen, `margin` is what `safealign_trainer` reads (TRL's own
    trainer does not). Raises ValueError for an unlabelled table and for soft labels.
    """
    from datasets import Dataset

    if "chosen" not in table:
        raise ValueError("table: no column chosen; label the pairs first, with pairs.label(table)")
    _only_hard(table.p.to_numpy(float))
    chosen, rejected = chosen_rejected(table, table.response_0, table.response_1)
    three = {"prompt": list(table.prompt), "chosen": list(chosen), "rejected": list(rejected)}
    if conversational:
        three = {"prompt": [turns(x) for x in three.pop("prompt")]} | {
            column: [[{"role": "assistant", "content": y}] for y in texts]
            for column, texts in three.items()
        }
    rest = table.drop(columns=[*TEXT, "chosen", "p"]).assign(chosen_id=table.chosen.astype(int))
    return Dataset.from_pandas(
        pd.DataFrame(three | {c: rest[c].array for c in rest}), preserve_index=False
    )


def from_trl(dataset):
    """The table of `read_pairs.load_pairs` from a preference data set of TRL: a `Dataset`, or a `DatasetDict`.

    Texts or messages; chosen becomes response_0 and better_response_id 0. A prompt that is only the common beginning
    of two texts is found by TRL's own `extract_prompt`, in dialogues by `load_pairs`. What `to_trl` wrote comes back
    as the labelled table it was (a dialogue from messages in the form of `tokens.dialogue`).
    Raises ValueError naming the row, counted over all splits as a line.
    """
    parts = dataset if isinstance(dataset, dict) else {"": dataset}
    rows = [
        {"split": split} | row if split else row for split, part in parts.items() for row in part
    ]
    columns = {c for part in parts.values() for c in part.column_names} | (
        {"split"} if dataset is parts else set()
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trl.jsonl"
        file.write_text(
            "".join(
                json.dumps(_readable(row, n), default=str) + "\n"
                for n, row in enumerate(rows, start=1)
            )
        )
        try:
            table = read_pairs.load_pairs(str(file))
        except ValueError as error:
            raise ValueError(str(error).replace(str(file), "trl")) from None
    if "chosen_id" not in columns:
        return table
    table = table.drop(
        columns=[c for c in ("source", "split", "category") if c in table and c not in columns]
    )
    levers = dict(
        chosen=[row["chosen_id"] for row in rows], p=1.0, margin=[row["margin"] for row in rows]
    )
    more = [c for c in rows[0] if c not in {*table, "chosen_id", "margin", "chosen", "rejected"}]
    return table.assign(**levers, **{c: [row[c] for row in rows] for c in more})


def _readable(row, number):
    """A row of TRL's in a layout of `load_pairs`; one of ours in the columns of PKU."""
    if "chosen_id" in row:
        say = lambda text: text if isinstance(text, str) else text[-1]["content"]
        texts = [say(row.pop("chosen")), say(row.pop("rejected"))][:: -1 if row["chosen_id"] else 1]
        prompt = row["prompt"] if isinstance(row["prompt"], str) else dialogue(row["prompt"])
        return row | {"prompt": prompt, "response_0": texts[0], "response_1": texts[1]}
    both = [row.get("chosen"), row.get("rejected")]
    if row.get("prompt") is None and all(
        isinstance(y, str) and y and read_pairs.ANSWER not in y for y in both
    ):
        if both[0][0] != both[1][0]:
            raise ValueError(
                f"data=trl, line {number}: no prompt, and no common beginning; add the column prompt"
            )
        return row | _trl().extract_prompt(row)
    return row


def _only_hard(p):
    if (p != 1).any():
        row = int(np.flatnonzero(p != 1)[0])
        raise ValueError(
            f"p={p[row]:g} on pair {row}: TRL's chosen and rejected cannot say a probability; "
            "use hard labels (pairs.label), or train with train.align"
        )


# ---------------------------------------------------------------- the same ids
def tokens_to_trl(tokens, *, kept=None):
    """Tokenised pairs as the `datasets.Dataset` that `DPOTrainer` makes of texts, with `margin`: N rows of ids.

    `kept` optionally fixes which response tokens count: a `selective.TokenTable` of 1 and 0, which become the
    columns chosen_kept and rejected_kept.
    """
    from datasets import Dataset

    _only_hard(tokens.p)
    columns = {
        "prompt_ids": tokens.prompts,
        "chosen_ids": tokens.chosen,
        "rejected_ids": tokens.rejected,
    }
    if kept is not None:
        columns |= {"chosen_kept": kept.chosen, "rejected_kept": kept.rejected}
    whole = lambda rows: [np.asarray(row).astype(int).tolist() for row in rows]
    return Dataset.from_dict(
        {c: whole(rows) for c, rows in columns.items()} | {"margin": tokens.margin.tolist()}
    )


def check_ids(dataset, tokens):
    """Refuse a tokenised data set (`trainer.train_dataset`) whose ids are not those of `tokens`, row by row."""
    if len(dataset) != len(tokens):
        raise ValueError(
            f"dataset: {len(dataset)} rows for {len(tokens)} pairs; give the same pairs in the same order"
        )
    mine = {
        "prompt_ids": tokens.prompts,
        "chosen_ids": tokens.chosen,
        "rejected_ids": tokens.rejected,
    }
    for number, row in enumerate(dataset):
        for column, ids in mine.items():
            if row[column] != ids[number].tolist():
                raise ValueError(
                    f"row {number}, column {column!r}: {row[column]} where the kit reads {ids[number].tolist()}; "
                    "a template, a special token or a cut differs: use tokens_to_trl with safealign_trainer"
                )


def optimizers(model, *, steps, learning_rate):
    """(AdamW, schedule) of the kit's training loop, for the argument `optimizers` of `DPOTrainer`."""
    adamw = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=train.BETAS, weight_decay=0.0
    )
    return adamw, torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: train.rate_at(step, steps))


# ---------------------------------------------------------------- the recipe
@functools.cache
def safealign_trainer():
    """TRL's `DPOTrainer` with the margin and the tokens as levers: the class `SafeAlignTrainer`.

    It takes what `DPOTrainer` takes (by name), data sets of `to_trl` or `tokens_to_trl`, and `keep` in [0, 1]:

    - SafeDPO (arXiv 2505.20065, Eq. 12): the column `margin`, delta (u_l - u_w) in the logit, outside beta.
    - Selective-DPO (arXiv 2507.07725): the top share `keep` of each response by the signed score against TRL's
      reference, found anew in every step; or fixed tokens, the columns chosen_kept and rejected_kept.

    The loss itself is TRL's: a fixed mask goes into its `completion_mask`, a recomputed one onto its token
    log-probs, margin / beta onto the reference's sum of the chosen response. So in TRL's
    log rewards/chosen and rewards/margins are what is left after the margin, and rewards/accuracies counts the
    pairs won by more than it. Raises ValueError for another loss than sigmoid, ModuleNotFoundError without trl.
    """
    trl = _trl(exact=True)
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    @dataclass
    class WithLevers(DataCollatorForPreference):
        def torch_call(self, examples):
            if "margin" not in examples[0]:
                raise ValueError(
                    "train_dataset: no column margin; make it with to_trl or tokens_to_trl"
                )
            batch = super().torch_call(examples)
            batch["margin"] = torch.tensor([x["margin"] for x in examples])
            sides = [(x, side) for side in ("chosen", "rejected") for x in examples]
            for mask, (x, side) in zip(batch["completion_mask"], sides):
                if f"{side}_kept" in x:
                    kept, n = x[f"{side}_kept"], len(x[f"{side}_ids"])
                    if len(kept) != n or not set(kept) <= {0, 1}:
                        raise ValueError(
                            f"{side}_kept={kept}: give a 1 or a 0 for each of {n} response tokens"
                        )
                    mask[mask == 1] = torch.tensor(kept)[: int(mask.sum())]
            return batch

    class SafeAlignTrainer(trl.DPOTrainer):
        def __init__(self, model, *, args, train_dataset, keep=1.0, **others):
            wanted = dict(
                loss_type=["sigmoid"],
                f_divergence_type="reverse_kl",
                ld_alpha=None,
                use_weighting=False,
                truncation_mode="keep_start",
            )
            if keep < 1 or "chosen_kept" in next(iter(train_dataset)):
                wanted["precompute_ref_log_probs"] = False  # which keeps sums over all tokens
            for name, value in wanted.items():
                if getattr(args, name) != value:
                    raise ValueError(
                        f"{name}={getattr(args, name)!r}: these levers need {name}={value!r}"
                    )
            self.tokens = TopTokens(keep)
            super().__init__(model, args=args, train_dataset=train_dataset, **others)
            self.data_collator = WithLevers(**vars(self.data_collator))

        def _prepare_dataset(self, dataset, *others):
            return (
                dataset
                if "prompt_ids" in next(iter(dataset))
                else super()._prepare_dataset(dataset, *others)
            )

        def _set_signature_columns_if_needed(self):
            if self._signature_columns is None:
                super()._set_signature_columns_if_needed()
                self._signature_columns += ["margin", "chosen_kept", "rejected_kept"]

        def _compute_loss(self, model, inputs, return_outputs):
            inputs, network, reference = dict(inputs), model, self.ref_model or self.model
            margin = inputs.pop("margin")
            if self.tokens.keep < 1:
                given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
                mask, read = inputs["completion_mask"], []
                labels = given["input_ids"].masked_fill(mask == 0, -100)
                policy = network(**given, labels=labels, fused_lm_head=True)
                self.compute_ref_log_probs(
                    lambda **x: read.append(reference(**x)) or read[0], inputs
                )  # adapter off
                ref = read[0].log_probs
                ratio, mask = policy.log_probs.detach() - ref, mask[:, 1:] == 1
                kept = torch.cat(self.tokens(*ratio.chunk(2), *mask.chunk(2), rows=None))
                policy.log_probs = policy.log_probs * kept
                sums = (ref * kept).sum(1).chunk(2)
                model = lambda **x: policy if x.get("fused_lm_head") else network(**x)
            elif self.precompute_ref_logps:
                sums = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
            else:
                sums = self.compute_ref_log_probs(reference, inputs)
            inputs |= {
                "ref_chosen_logps": sums[0] + margin / self.beta,
                "ref_rejected_logps": sums[1],
            }
            before, self.precompute_ref_logps = (
                self.precompute_ref_logps,
                True,
            )  # the sums stand in the batch
            try:
                return super()._compute_loss(model, inputs, return_outputs)
            finally:
                self.precompute_ref_logps = before

    return SafeAlignTrainer
