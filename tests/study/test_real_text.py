"""Notebooks 01 and 05 end to end on real human preferences, in a short form (needs SAFEALIGN_DATA)."""

import json

import pandas as pd
from helpers import ROOT

from safealign_utils.runs import runner


def test_notebook_01_on_real_preferences(real_data, tmp_path):
    given = [
        ("data", str(real_data / "pku_saferlhf_pairs.jsonl")),
        ("label", "safer"),
        ("seeds", "1"),
        ("steps", "3"),
    ]
    profile = ROOT / "notebooks" / "profiles" / "real_text.yaml"
    folder, record, _ = runner.run(
        "01_dpo_basics", [*given, ("pairs", "120")], [profile], out=tmp_path
    )
    assert {"dpo.accuracy", "bag_of_words.accuracy"} <= set(record["metrics"])
    assert 0.2 < record["metrics"]["dpo.accuracy"] < 0.9
    assert "accuracy.png" in record["figures"] and "training.csv" in record["tables"]
    assert not [name for name in record["metrics"] if "kl_opt" in name], (
        "nothing exact is claimed on real text"
    )
    (claim,) = [c for c in record["claims"] if c["id"] == "dpo.beats_bag_of_words"]
    assert claim["n"] > 100
    book = json.loads((folder / "01_dpo_basics.ipynb").read_text())
    outputs = [o for c in book["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    assert not [o for o in outputs if o.get("name") == "stderr"]


def test_notebook_05_on_several_real_data_sets(real_data, tmp_path):
    files = dict(pku="pku_saferlhf_pairs", xstest="xstest_pairs", harmless="hh_rlhf_harmless")
    data = ",".join(f"{name}={real_data / file}.jsonl" for name, file in files.items())
    short = [("seeds", "1"), ("steps", "2"), ("max_length", "48"), ("selections", "random,dog_d")]
    profile = ROOT / "notebooks" / "profiles" / "real_text_dog.yaml"
    _, record, _ = runner.run("05_dog_selection", [("data", data), *short], [profile], out=tmp_path)
    metrics = record["metrics"]
    for name in files:
        assert 0.2 < metrics[f"dog_d[source={name}].accuracy"] < 0.95
        assert metrics[f"coverage[rule=dog_d].from_{name}"] > 0
    assert (
        0 < metrics["data.different"] <= metrics["data.trainable"]
        and "accuracy_by_source.png" in record["figures"]
    )


def test_notebooks_02_and_03_on_real_pairs_with_the_kits_own_scorers(real_data, tmp_path):
    """XSTest and PKU pairs: counts of T, the cost model's accuracy with its interval, answers, record and figure."""
    data = ",".join(
        f"{name}={real_data / file}.jsonl"
        for name, file in dict(pku="pku_saferlhf_pairs", xstest="xstest_pairs").items()
    )
    short = dict(
        data=data,
        steps="2",
        pairs="120",
        batch_size="8",
        max_length="48",
        scorer_steps="3",
        eval_size="12",
        new_tokens="6",
        eval_prompts=f"xstest={real_data / 'xstest_prompts.csv'}",
    )
    loop = dict(rounds="1", round_steps="2", round_samples="4", lambdas="1.0")
    profile = ROOT / "notebooks" / "profiles" / "real_text_safety.yaml"
    for name, more in (("02_safedpo", {}), ("03_cdpo_dual_gradient_descent", loop)):
        folder, record, _ = runner.run(
            name, tuple({**short, **more}.items()), [profile], out=tmp_path
        )
        metrics = record["metrics"]
        assert (
            metrics["data.rows"] == 975 + 1184 and 0 < metrics["cost_model.harmless_accuracy"] < 1
        )
        quality = pd.read_csv(folder / "scorers.csv").set_index("quantity").loc["harmless_accuracy"]
        assert quality.low < quality.value < quality.high and quality.n > 300
        if name == "02_safedpo":
            assert (
                metrics["data.keep"] + metrics["data.swap"] + metrics["data.drop"] == 120
                and metrics["data.swap"] > 0
            )
        method = "safedpo" if name == "02_safedpo" else "cdpo"
        assert (
            0 <= metrics[f"{method}.harmless_ratio"] <= 1
            and 0 <= metrics[f"{method}.over_refusal"] <= 1
        )
        assert (
            "answers.png" in record["figures"]
            and (folder / f"answers_{method}_seed0.jsonl").is_file()
        )
        texts = [
            json.loads(line)["answers"][0]
            for line in (folder / f"answers_{method}_seed0.jsonl").open()
        ]
        book = (folder / f"{name}.ipynb").read_text()
        assert len(texts) == 12 and not [
            y for y in texts if len(y) > 15 and json.dumps(y)[1:-1] in book
        ], "answers stay in files"
