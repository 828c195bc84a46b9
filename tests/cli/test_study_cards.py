"""The figures of a study and its card, from records that were written here by hand."""

import json

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from sklearn.metrics import accuracy_score, roc_auc_score

from sssd_hf.cli.study_cards import study_card
from sssd_hf.cli.study_records import digest, write_record
from sssd_hf.cli.study_summary import summarise_study
from sssd_hf.cli.study_tables import tables

PLAN = {
    "data": "SCANS",
    "notes": ["Two of the images are of <one> patient."],
    "protocols": {
        "seeds": {"title": "one split (3 seeds)", "columns": ["cut"], "seeds": [0, 1, 2]},
        "rest": {
            "title": "without one image", "columns": ["cut"], "seeds": [0, 1, 2],
            "without": ["0.png"],
        },
    },
    "variants": {"ours": {"title": "our method"}, "other": {"baseline": "ridge"}},
}  # fmt: skip


def record(variant, seed, shift, hardware):
    rng = np.random.default_rng(seed)
    truth = np.arange(60) % 2
    scores = np.clip(0.5 + shift * (truth - 0.5) + rng.normal(0, 0.3, 60), 0.01, 0.99)
    return {
        "data": "SCANS", "variant": variant, "split": "cut", "seed": seed, "revision": "abc",
        "hardware": hardware, "minutes": {"pretrain": 10 * seed + 2, "finetune": 1},
        "external": [], "started_from": {}, "options": {}, "num_train_images": 200,
        "labels": ["ill", "well"], "images": [digest("SCANS", f"{i}.png") for i in range(60)],
        "groups": [f"{i // 2:012d}" for i in range(60)], "truth": truth.tolist(),
        "probabilities": np.stack([1 - scores, scores], axis=1).tolist(),
    }  # fmt: skip


@pytest.fixture
def study(tmp_path):
    """Two of three runs of the main method, on two processors, and all of the other; recipe."""
    slow = {"name": "slow", "precision": "no"}
    records = [
        record("ours", 0, 0.4, {"name": "fast"}),
        record("ours", 2, 0.2, slow),
        *(record("other", seed, 0.1, {"name": "fast"}) for seed in range(3)),
    ]
    for each in records:
        folder = tmp_path / "results" / "scans" / each["variant"]
        write_record(folder / f"cut-seed_{each['seed']}.json", each)
    recipe = tmp_path / "scans.yaml"
    content = {"common": {"group_column_name": "patient"}, "finetune": {"pooling": "mean"}}
    recipe.write_text(yaml.safe_dump({**content, "reproduce": PLAN}))
    return records, summarise_study(tmp_path / "results", "scans", PLAN), recipe


def test_figures_are_means_over_all_runs(study):
    records, summary, _ = study
    json.dumps(summary, allow_nan=False)
    protocol = summary["protocols"][0]
    row, other = protocol["rows"]
    assert (row["variant"], row["runs"], row["planned"], row["baseline"]) == ("ours", 2, 3, "")
    assert (other["runs"], other["baseline"]) == (3, "ridge")
    measured = {
        "accuracy": [accuracy_score(r["truth"], np.argmax(r["probabilities"], 1)) for r in records],
        "roc_auc": [roc_auc_score(r["truth"], np.array(r["probabilities"])[:, 1]) for r in records],
    }
    for metric, values in measured.items():
        found = row["metrics"][metric]
        assert found["mean"] == pytest.approx(np.mean(values[:2]))
        assert found["std"] == pytest.approx(np.std(values[:2], ddof=1))
        assert [found["min"], found["max"]] == pytest.approx(sorted(values[:2]))
        assert found["low"] < found["mean"] < found["high"]
        (difference,) = protocol["differences"]
        pairs = np.subtract(values[:2], [values[2], values[4]])  # seeds 0 and 2
        assert difference[metric]["mean"] == pytest.approx(pairs.mean())
    assert (difference["first"], difference["second"], difference["pairs"]) == ("ours", "other", 2)
    assert protocol["num_test_groups"] == [30, 30]
    fast, slow = ({"pretrain": [n, n], "finetune": [1, 1]} for n in (2, 22))
    assert row["trainings"] == [
        {"hardware": "fast", "runs": 1, "minutes": fast},
        {"hardware": "slow, fp32", "runs": 1, "minutes": slow},
    ]
    line = next(line for line in tables(summary).splitlines() if line.startswith("| our method"))
    assert line.split(" | ")[1] == "2 of 3"
    assert line.endswith(" | 3 to 23 |")


def test_a_card_tells_what_all_runs_have_in_the_mean(study):
    _, summary, recipe = study
    card = ModelCard(study_card(summary, recipe))
    found = {result.metric_type: result for result in card.data.eval_results}
    metrics = summary["protocols"][0]["rows"][0]["metrics"]
    assert found["accuracy"].metric_value == round(metrics["accuracy"]["mean"], 4)
    assert found["roc_auc"].metric_value == round(metrics["roc_auc"]["mean"], 4)
    assert found["accuracy"].metric_args["runs"] == "2 of 3"
    assert len(card.data.eval_results) == 2  # of the protocol of all images
    assert card.data.eval_results[0].dataset_name == "SCANS, one split (3 seeds)"
    text = card.text
    assert text.index("not a medical device") < text.index("our method")
    mean, best = (f"{100 * metrics['accuracy'][key]:.1f}" for key in ("mean", "max"))
    head = text[: text.index("## Intended use")]
    assert f"| one split (3 seeds) | 2 of 3 | {mean} ± " in head
    assert f"| {best} |" not in head
    assert '"positive" in all figures here is well' in text
    recall = metrics["recall"]
    ends = f"{100 * recall['min']:.1f} to {100 * recall['max']:.1f}"
    assert f"| Sensitivity (recall): well found | {100 * recall['mean']:.1f} % | {ends} |" in text
    assert "60 tested, of 30 groups (patient)" in text
    assert (
        "22 minutes of pretraining and 1 minutes of fine-tuning a run on slow, fp32 (1 of" in text
    )
    assert "- Two of the images are of &lt;one&gt; patient." in text
    assert "Not all planned runs were done: one split (3 seeds)." in text
    assert "pooling: mean" in text
    assert "reproduce:" not in text  # the plan is none of its options
    assert "--results_dir" in text  # else what has a record is not done again


def test_without_a_run_of_the_method_there_is_no_card(study):
    _, summary, recipe = study
    with pytest.raises(ValueError, match="scans: there is no record of better"):
        study_card({**summary, "main": "better"}, recipe)


def test_models_that_choose_by_validation_stand_beside_baselines_without(tmp_path):
    """And data that changed between two runs are still noticed."""
    hardware = {"name": "fast"}
    for seed in range(3):
        baseline = {**record("other", seed, 0.1, hardware), "options": {"baseline": {}}}
        for each, images in ((record("ours", seed, 0.4, hardware), 200), (baseline, 170)):
            place = tmp_path / "scans" / each["variant"] / f"cut-seed_{seed}.json"
            write_record(place, {**each, "num_train_images": images})
    rows = summarise_study(tmp_path, "scans", PLAN)["protocols"][0]["rows"]
    assert [row["runs"] for row in rows] == [3, 3]
    place = tmp_path / "scans" / "ours" / "cut-seed_2.json"
    write_record(place, {**record("ours", 2, 0.4, hardware), "num_train_images": 199})
    with pytest.raises(ValueError, match="the data were changed"):
        summarise_study(tmp_path, "scans", PLAN)
