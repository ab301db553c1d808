"""Notebook 08: nothing without data, what labels allow, real pairs end to end (needs SAFEALIGN_DATA), refusals."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT
from helpers.made_models import model_folder, pairs_file

from safealign_utils import pairs
from safealign_utils.methods import safedpo
from safealign_utils.real import read_pairs
from safealign_utils.runs import cli, runner
from safealign_utils.study import inputs, real_text
from safealign_utils.study import settings as parameters

BOOK = "08_your_own_pairs"
PROFILES = ROOT / "notebooks" / "profiles"
SHORT = dict(
    profile="small",
    dtype="float32",
    steps=2,
    batch_size=8,
    max_length=48,
    scorer_steps=3,
    rounds=1,
    round_steps=2,
    round_samples=4,
    eval_size=12,
    new_tokens=6,
    token_rules="signed,random,shuffled",
    selections="random,dog_d,dog,log_det",
)


def run(out, *files, **given):
    """(folder, record) of a short run of notebook 08."""
    texts = [(name, str(value)) for name, value in {**SHORT, **given}.items()]
    return runner.run(BOOK, texts, files, out=out)[:2]


def outputs(folder):
    book = json.loads((folder / f"{BOOK}.ipynb").read_text(encoding="utf-8"))
    return [o for c in book["cells"] if c["cell_type"] == "code" for o in c["outputs"]]


def rows(file, n=90, **labels):
    """A file of pairs; `labels` {column: function of the row number} beside their texts."""
    g = np.random.default_rng(n)
    word = lambda: " ".join(g.choice(["red", "blue", "stone", "leaf", "river"], 4))
    lines = [
        {
            "prompt": f"say {word()} {i}",
            "response_0": word(),
            "response_1": word() + " now",
            **{column: of(i) for column, of in labels.items()},
        }
        for i in range(n)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


BETTER = {"better_response_id": lambda i: i % 2}
SAFE = {
    "is_response_0_safe": lambda i: [True, False, None][i % 3],
    "is_response_1_safe": lambda i: bool(i % 2),
    "safer_response_id": lambda i: (i // 2) % 2,
}


def test_without_data_it_says_what_it_needs_and_ends_complete(tmp_path):
    folder, record, _ = runner.run(BOOK, out=tmp_path / "out")
    assert record["status"] == "complete" and record["metrics"] == {} and record["tables"] == []
    said = [o["text"] for o in outputs(folder) if o["output_type"] == "stream"]
    assert "".join(said[0]).strip() == real_text.NOTHING and "\n" not in real_text.NOTHING
    assert not [o for o in outputs(folder) if o["output_type"] in ("execute_result", "error")]


def test_labels_decide_which_parts_run(tmp_path):
    """Winners alone: DPO, Selective-DPO and DOG. Without a word on helpfulness: SafeDPO too."""
    one = rows(tmp_path / "one.jsonl", **BETTER)
    folder, record = run(tmp_path / "out", data=one)
    assert {"dpo.accuracy", "selective.reward", "dog_d.reward", "bag_of_words.accuracy"} <= set(
        record["metrics"]
    )
    assert not [m for m in record["metrics"] if m.startswith(("safedpo", "cdpo", "cost_model"))]
    runs = pd.read_csv(folder / "parts.csv").set_index("part").runs
    assert runs["safedpo"] == "no pair has both safety labels"
    assert runs["cdpo"] == "no pair has a safety label; name a cost_model"
    two = rows(tmp_path / "two.jsonl", **SAFE)
    folder, record = run(tmp_path / "out", data=two, parts="safedpo,dog")
    metrics = record["metrics"]
    assert {"data.keep", "data.swap", "safedpo.accuracy_safer", "safedpo.cost"} <= set(metrics)
    assert "safedpo.reward" not in metrics and "selective.accuracy" not in metrics
    runs = pd.read_csv(folder / "parts.csv").set_index("part").runs
    assert "name a reward_model" in runs["cdpo"] and runs["selective"] == "not asked for"
    assert "answers.png" in record["figures"], "drawn against refusals"


def test_several_data_sets_and_unusual_values(tmp_path):
    one, two = (
        rows(tmp_path / "a.jsonl", **BETTER, **SAFE),
        rows(tmp_path / "b.jsonl", 60, **BETTER),
    )
    given = dict(data=f"one={one},two={two}", pairs=500, delta=2, keep=1, layer=1, pooling="last")
    given |= dict(budget=0.9, score_reference="equal", relabel="coin", fixed_lambda=0, seeds=2)
    given["cost_loss"] = "hinge"
    given |= dict(selections="random,literal,k_means,smallest_margin,random_copies")
    folder, record = run(tmp_path / "out", **given)
    metrics = record["metrics"]
    assert {f"literal[source={s}].accuracy" for s in ("one", "two", "all")} <= set(metrics)
    assert metrics["coverage[rule=literal].from_two"] > 0 and "dog_d.reward" not in metrics
    assert metrics["selective.accuracy"] == metrics["dpo.accuracy"], "a share of 100 % is DPO"
    assert metrics["fixed_lambda[lambda=0].reward"] == metrics["dpo_soft.reward"]
    assert not [m for m in metrics if m.endswith((".kl_opt", ".unsafe"))]


def test_real_pairs_with_the_kits_own_scorers(real_data, tmp_path):
    """PKU and XSTest: T's counts, scorers with intervals, answers, their files, every method's row."""
    files = dict(pku="pku_saferlhf_pairs", xstest="xstest_pairs")
    data = ",".join(f"{name}={real_data / file}.jsonl" for name, file in files.items())
    given = dict(data=data, pairs=120, label="better_or_safer", judge_files="alpaca_eval")
    given |= dict(cross_fitted="true")
    given["eval_prompts"] = f"xstest={real_data / 'xstest_prompts.csv'}"
    folder, record = run(tmp_path / "out", PROFILES / "real_text.yaml", **given)
    metrics = record["metrics"]
    assert metrics["data.rows"] == 975 + 1184 and 0 < metrics["cost_model.harmless_accuracy"] < 1
    assert metrics["data.keep"] + metrics["data.swap"] + metrics["data.drop"] == 120
    quality = pd.read_csv(folder / "scorers.csv").set_index("quantity").loc["harmless_accuracy"]
    assert quality.low < quality.value < quality.high and quality.n > 300
    answers = pd.read_csv(folder / "answers.csv").set_index("method")
    methods = "ref dpo dpo_safebetter safedpo dpo_harmless dpo_soft cdpo selective dog_d".split()
    assert set(methods) < set(answers.index) and answers.over_refusal.between(0, 1).all()
    assert {"dpo_cross_fitted", "safedpo_cross_fitted"} < set(answers.index)
    for name in ("dpo", "safedpo"):
        soft, hard = (metrics[f"{name}{kind}.accuracy_better"] for kind in ("_cross_fitted", ""))
        gain = metrics[f"{name}_cross_fitted.minus_hard_better"]
        assert gain == pytest.approx(soft - hard, abs=1e-12)
    assert record["timings"]["cross-fitting"] > 0
    assert {f"dog_d[source={name}].accuracy" for name in files} <= set(metrics)
    drawn = "training accuracy tokens spectra anchor_residual accuracy_by_source answers".split()
    assert {f"{name}.png" for name in drawn} <= set(record["figures"])
    judged = json.loads((folder / "judges" / "alpaca_eval" / "safedpo_seed0.json").read_text())
    texts = [
        json.loads(line)["answers"][0] for line in open(folder / "answers_safedpo_seed0.jsonl")
    ]
    assert [row["output"] for row in judged] == texts and len(texts) == 12
    book = (folder / f"{BOOK}.ipynb").read_text()
    in_book = [y for y in texts if len(y) > 15 and json.dumps(y)[1:-1] in book]
    assert not in_book, "answers stay in files"
    said = "".join("".join(o["text"]) for o in outputs(folder) if o.get("name") == "stderr")
    assert said.count("\n") <= 1 and (not said or said.startswith("C-DPO: lambda still rises"))


def test_probes_label_and_others_judge(tmp_path):
    """Heads of the training pairs label C-DPO's, heads of the held-out ones judge the answers; heads
    of other prompts, and no training, fit the labels of DPO."""
    file = rows(tmp_path / "p.jsonl", **BETTER, **SAFE)
    given = dict(data=file, reward_model="probe", cost_model="probe", heldout=0.4, parts="cdpo")
    given |= dict(cross_fitted="true")
    folder, record = run(tmp_path / "out", **given)
    gain = pd.read_csv(folder / "cross_fitted.csv").set_index("label")
    assert list(gain.index) == ["better", "safer"] and set(gain.method) == {"dpo_cross_fitted"}
    assert (gain.low <= gain.minus_hard).all() and (gain.minus_hard <= gain.high).all()
    quality = pd.read_csv(folder / "scorers.csv").set_index(["method", "quantity"])
    assert quality.n["reward_model", "pair_accuracy"] == 90, "cross-validated on all pairs"
    assert quality.n["reward_model", "minus_words"] == 90
    assert quality.low["reward_model", "pair_accuracy"] < 0.7, "the labels have no rule"
    judges = pd.read_csv(folder / "judges.csv").set_index(["method", "quantity"])
    assert 30 < judges.n["reward_judge", "pair_accuracy"] < 90, "on the training pairs"
    against = pd.read_csv(folder / "against_scorers.csv")
    assert list(against.method) == ["reward_model", "cost_model"] and (against.n < 60).all()
    assert {"cdpo.cost", "dpo.minus_reward_model"} <= set(record["metrics"])
    assert record["metrics"]["data.rows"] == 90


def test_probes_of_too_few_prompts_are_refused(capsys, tmp_path):
    """And those whose labels are all the same."""
    file = rows(tmp_path / "p.jsonl", 8, **BETTER, is_response_0_safe=bool, is_response_1_safe=bool)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    marked = [line | {"split": "train" if i < 4 else "test"} for i, line in enumerate(lines)]
    file.write_text("".join(json.dumps(line) + "\n" for line in marked))
    given = ("-p", f"data={file}", "-p")
    words = "reward_model='probe': 4 prompts of a split have its labels, 5 are needed"
    assert words in refused(capsys, tmp_path, *given, "reward_model=probe")
    safe = {f"is_response_{k}_safe": lambda i: True for k in (0, 1)}
    file = rows(tmp_path / "q.jsonl", 40, **BETTER, **safe)
    given = ("-p", f"data={file}", "-p")
    words = "cost_model='probe': the responses of a split have all the same safety label"
    assert words in refused(capsys, tmp_path, *given, "cost_model=probe")


def test_probes_of_pairs_without_an_order(tmp_path):
    """Both responses of a pair always safe or always unsafe: heads of the signs, no pair ordered."""
    same = {f"is_response_{k}_safe": lambda i: bool(i % 2) for k in (0, 1)}
    file = rows(tmp_path / "p.jsonl", 60, **BETTER, **same)
    given = dict(data=file, cost_model="probe", heldout=0.4, parts="dpo")
    folder, _ = run(tmp_path / "out", **given)
    quality = pd.read_csv(folder / "scorers.csv")
    assert "harmless_accuracy" in set(quality[quality.method == "cost_model"].quantity)
    assert "words" not in set(quality.quantity)


def test_what_cannot_be_fine_tuned_or_held_out_is_refused(capsys, tmp_path):
    unsafe = {f"is_response_{k}_safe": lambda i: False for k in (0, 1)}
    file, model = rows(tmp_path / "p.jsonl", 30, **BETTER, **unsafe), tmp_path / "model"
    given = ("-p", f"data={file}", "-p", f"model={model_folder(model, 'llama')}", "-p")
    capsys.readouterr()  # what saving a model prints
    words = "sft_steps=2: no training prompt has a response that no label calls unsafe"
    assert words in refused(capsys, tmp_path, *given, "sft_steps=2")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    marked = [line | {"category": f"c{i % 2}"} for i, line in enumerate(lines)]
    file.write_text("".join(json.dumps(line) + "\n" for line in marked))
    words = "heldout_categories='d': no category of pairs or prompts; they have c0, c1"
    assert words in refused(capsys, tmp_path, *given, "heldout_categories=c1,d")
    both = [line | {"prompt": "say it"} for line in marked]
    file.write_text("".join(json.dumps(line) + "\n" for line in both))
    words = "heldout_categories=['c1']: 15 training and 0 held-out pairs"
    assert words in refused(capsys, tmp_path, *given, "heldout_categories=c1")


def test_a_pretrained_model_may_be_fine_tuned_before(tmp_path):
    """On safe responses, whole categories held out, prompts of trained ones not answered."""
    file, model = tmp_path / "p.jsonl", model_folder(tmp_path / "model", "llama")
    lines = [json.loads(line) for line in rows(file, 80, **BETTER, **SAFE).read_text().splitlines()]
    text = [json.dumps(line | {"category": f"c{i % 8}"}) for i, line in enumerate(lines)]
    file.write_text("\n".join(text))
    asked = [{"prompt": f"tell {i}", "category": f"c{i}"} for i in range(8)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, asked)))
    given = dict(
        data=file, model=model, sft_steps=2, sft_rate=1e-3, parts="dpo", learning_rate=1e-3
    )
    given |= dict(heldout_categories="c1,c2,c5", eval_prompts=tmp_path / "q.jsonl")
    folder, record = run(tmp_path / "out", **given)
    answered = [json.loads(line) for line in open(folder / "answers_ref_seed0.jsonl")]
    held = {line["category"] for line in answered}
    assert held == {"c1", "c2", "c5"} and len(answered) == 3
    assert record["metrics"]["data.prompts_not_asked"] == 5
    del given["sft_rate"]  # refused where nothing is fine-tuned
    plain = run(tmp_path / "out", **given | {"sft_steps": 0})[0]
    assert (plain / "answers_ref_seed0.jsonl").read_text() != (
        folder / "answers_ref_seed0.jsonl"
    ).read_text()


def test_prompts_that_are_all_trained_on_are_refused(capsys, tmp_path):
    file = rows(tmp_path / "p.jsonl", 30, **BETTER)
    given = ("-p", f"data={file}", "-p", f"eval_prompts={tmp_path / 'q.jsonl'}")
    train = pairs.split_pairs(pairs.label(read_pairs.load_pairs(str(file))))[0]
    (tmp_path / "q.jsonl").write_text(json.dumps({"prompt": train.prompt[0]}) + "\n")
    assert "every prompt is trained on" in refused(capsys, tmp_path, *given)


def test_t_on_real_rows(real_data):
    """Where helpful and safe disagree, the safe one wins; pairs that are all mixed are kept."""
    load = lambda file: read_pairs.load_pairs(str(real_data / file))
    table = pairs.with_safety(pairs.label(load("xstest_pairs.jsonl"), "better"))
    moved, report = safedpo.transform(table)
    assert report["keep"] + report["swap"] + report["drop"] == len(table) and report["swap"] > 50
    assert not safedpo.unsafe_labels(moved)[0].any() and len(moved) == len(table) - report["drop"]
    pku = pairs.with_safety(pairs.label(load("pku_saferlhf_pairs.jsonl"), "safer"))
    assert safedpo.transform(pku)[1] == {"keep": len(pku), "swap": 0, "drop": 0, "mixed": len(pku)}


# ---------------------------------------------------------------- refusals, profiles


def refused(capsys, tmp_path, *words):
    """The message of a refused run: one line, exit status 2, nothing written."""
    status = cli.main(["run", BOOK, *words, "--out", str(tmp_path / "out")])
    err = capsys.readouterr().err
    assert status == 2 and err.count("\n") == 1 and not (tmp_path / "out").exists()
    return err


def test_what_the_pairs_lack_is_refused_where_it_is_asked_for(capsys, tmp_path):
    both = lambda row: "".join(
        json.dumps(row | {"prompt": s, "split": s}) + "\n" for s in ("train", "test")
    )
    row, file = (
        {"response_0": "b", "response_1": "c", "better_response_id": 1},
        tmp_path / "p.jsonl",
    )
    file.write_text(both(row))
    given = ("-p", f"data={file}", "-p")
    assert "SafeDPO needs safety labels" in refused(capsys, tmp_path, *given, "parts=safedpo")
    words = "cost_model='kit': no training pair has a safety label"
    assert words in refused(capsys, tmp_path, *given, "parts=cdpo")
    words = "cross_fitted=true: labels are fitted to 3 folds of prompts, the training pairs have 1"
    assert words in refused(capsys, tmp_path, *given, "cross_fitted=true")
    row |= {"is_response_0_safe": True, "is_response_1_safe": False}
    file.write_text(both(row | {"safer_response_id": 0, "better_response_id": None}))
    words = "reward_model='kit': no training pair says which response is better; name a reward"
    assert words in refused(capsys, tmp_path, *given, "parts=cdpo")


def test_a_cost_loss_whose_unit_no_pair_has_is_refused(capsys, tmp_path):
    file = rows(tmp_path / "p.jsonl", 30, **BETTER, **SAFE)
    said = refused(capsys, tmp_path, "-p", f"data={file}", "-p", "cost_loss=hinge")
    assert re.search(r"cost_loss='hinge': only \d+ pairs of equal status .*; use safe_rlhf", said)


@pytest.mark.parametrize(
    "more, words",
    [
        ("template=chat", "template='chat' with model='scratch'"),
        ("eval_prompts=xtest", "did you mean xstest"),
        ("eval_prompts=xstest=nowhere.csv", "nowhere.csv"),
        ("cost_model=nowhere", "cost_model='nowhere': "),
        ("lora=-1", "lora=-1"),
        ("accumulate=0", "accumulate=0"),
        ("scorer_rate=-1", "scorer_rate=-1.0"),
        ("parts=sft", "names among dpo, safedpo, cdpo, selective, dog"),
        ("heldout=1", "a share below 1"),
        ("heldout=0.9999", "heldout=0.9999: 0 training and 30 held-out pairs"),
        ("heldout_categories=topic", "heldout_categories=['topic']: 30 training and 0 held-out"),
        ("reward_model=scratch", "reward_model='scratch'"),
        ("sft_steps=3", "sft_steps=3 with model='scratch'"),
        ("judge_files=mt_bench,arena", "forms among mt_bench, arena_hard"),
        ("layer=4", "the network has layers 0 to 3"),
        ("data=world", "data='world': must be a file"),
    ],
)
def test_refused_values(capsys, tmp_path, more, words):
    file = rows(tmp_path / "p.jsonl", 30, **BETTER)
    data = [] if more.startswith("data=") else ["-p", f"data={file}"]
    assert words in refused(capsys, tmp_path, *data, "-p", more)


def test_a_form_that_cannot_hold_the_answers_is_refused_before_training(capsys, tmp_path):
    file, questions = rows(tmp_path / "p.jsonl", 30, **BETTER), tmp_path / "q.jsonl"
    questions.write_text(json.dumps({"id": "a", "prompt": "Write a line."}) + "\n")
    given = ("-p", f"data={file}", "-p", f"eval_prompts={questions}", "-p", "judge_files=mt_bench")
    assert "ids of MT-Bench are integers" in refused(capsys, tmp_path, *given)


def test_every_profile_of_real_models_is_accepted():
    """Names, types and ranges; what they say of the papers' setting."""
    cell = parameters.read_cell(runner.find(BOOK))
    for file in sorted(PROFILES.glob("*_pku30k.yaml")):
        given = parameters.resolve(parameters.collect(cell, [], [file]), BOOK)
        assert given["beta"] == 0.1 and given["learning_rate"] == 1e-6
        assert given["dtype"] == "bfloat16" and given["delta"] == 10.0
        assert 2.9 < given["steps"] * given["batch_size"] / 26_900 < 3.1, "three epochs"
    given = parameters.resolve(parameters.collect(cell, [], [PROFILES / "real_text.yaml"]), BOOK)
    assert given["model"] == "scratch" and given["parts"] == []


def test_a_file_may_hold_parameters_of_other_notebooks(capsys, tmp_path):
    """They are named on stderr; what the run would be about is not left out, it is refused."""
    file, cell = tmp_path / "f.yaml", parameters.read_cell(runner.find("02_safedpo"))
    file.write_text("delta: 10.0\ncost_limit: 0.0\ndual_lr: 0.1")
    found = parameters.resolve(parameters.collect(cell, [], [file]), "02_safedpo")
    assert found["delta"] == 10.0 and "cost_limit" not in found
    assert "left out, as other notebooks have them: cost_limit, dual_lr" in capsys.readouterr().err
    with pytest.raises(
        parameters.Refusal, match="02_safedpo has no parameter model; 07_a_real_model, 08_your_own_"
    ):
        file = PROFILES / "qwen2.5_0.5b_pku30k.yaml"
        parameters.collect(cell, [], [file], "02_safedpo")


@pytest.mark.parametrize(
    "given, words",
    [
        ((), "dtype='float64' for model="),
        (("dtype=float32",), "learning_rate=0.003 for model="),
        (("dtype=float32", "lora=4"), ""),
        (("dtype=float64", "learning_rate=0.003"), ""),
    ],
)
def test_the_profiles_precision_and_rate_are_not_for_a_pretrained_model(
    given, words, tmp_path, monkeypatch
):
    """Given by name they are taken."""
    data, model = pairs_file(tmp_path / "pairs.jsonl"), model_folder(tmp_path / "model", "llama")
    monkeypatch.setattr(inputs, "LARGE", 1000)
    asked = [("data", str(data)), ("model", str(model)), *(tuple(w.split("=")) for w in given)]
    if not words:
        assert runner.prepare(BOOK, asked)
        return
    with pytest.raises(parameters.Refusal, match=words) as refusal:
        runner.prepare(BOOK, asked)
    assert "by name is taken" in str(refusal.value) and "; give " in str(refusal.value)


def test_small_made_models_are_not_pretrained(tmp_path):
    data, model = pairs_file(tmp_path / "pairs.jsonl"), model_folder(tmp_path / "model", "llama")
    assert runner.prepare(BOOK, [("data", str(data)), ("model", str(model))])
