"""A made-up evaluation folder, as evaluate.py writes it, with the model, pretraining and audit
folders that a report draws from. All numbers are of random scores; no image is anyone's."""

import csv
import json

import numpy as np
from PIL import Image

from sssd_hf.data.findings import Finding
from sssd_hf.evaluation.calibration import apply_calibration, fit_calibration
from sssd_hf.evaluation.comparison import compare_models
from sssd_hf.evaluation.figures import write_figures
from sssd_hf.evaluation.metrics import to_json
from sssd_hf.evaluation.summary import summarise

VERSIONS = {
    "sssd_hf": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "accelerate": "1.15.0",
    "finished": "2030-01-02T03:04:05+0000",
}  # fmt: skip


def draw_predictions(num_patients=70, num_classes=2, sharpness=1.3, seed=0):
    """Labels [N], overconfident probabilities [N, K], patients [N]: one to five images a patient,
    who has one label and shifts the scores of all of them."""
    rng = np.random.default_rng(seed)
    of_patient = rng.integers(num_classes, size=num_patients)
    groups = np.repeat(np.arange(num_patients), rng.integers(1, 6, size=num_patients))
    labels = of_patient[groups]
    logits = rng.normal(size=(len(labels), num_classes))
    logits += 0.8 * rng.normal(size=(num_patients, num_classes))[groups]
    logits[np.arange(len(labels)), labels] += sharpness
    logits *= 2.2
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return labels, exponents / exponents.sum(axis=1, keepdims=True), groups


def write_evaluation(
    folder, num_classes=2, num_patients=70, names=None, grouped=True, seed=0, num_resamples=200
):
    """Write folder/evaluation, folder/finetuned and folder/pretrained; the first is returned."""
    names = names or ["non-covid", "covid", "bacterial", "normal", "other"][:num_classes]
    labels, probabilities, groups = draw_predictions(num_patients, num_classes, seed=seed)
    rng = np.random.default_rng(seed + 1)
    held = draw_predictions(num_patients, num_classes, seed=seed + 2)
    calibration = None
    if len(set(held[0].tolist())) == num_classes:
        calibration = fit_calibration(held[0], np.log(held[1]))
    calibrated, decided = apply_calibration(probabilities, calibration)
    ids = groups if grouped else None
    columns = {
        "sex": rng.choice(["female", "male"], size=groups.max() + 1)[groups],
        "site": rng.choice(["A", "B", "C (portable)"], p=[0.6, 0.35, 0.05], size=groups.max() + 1)[
            groups
        ],
        "age": rng.integers(18, 95, size=groups.max() + 1)[groups].tolist(),
    }
    results = summarise(
        labels, probabilities, names, ids, calibration=calibration, subgroup_columns=columns,
        num_resamples=num_resamples,
    )  # fmt: skip
    results |= {
        "interval_method": "95 % percentile bootstrap of "
        + ("groups (patient_id)" if grouped else "images"),
        "num_test_images": len(labels),
        "num_test_images_seen": 0,
        "num_test_groups": len(set(groups.tolist())) if grouped else None,
        "group_column_name": "patient_id" if grouped else None,
        "num_groups_shared_with_training": 6 if grouped else None,
        "split_column": "official_split",
        "test_split": "test",
        "labels": names,
        "positive_label": names[1] if num_classes == 2 else None,
        "times_test_was_read": 2,
        "command": "python scripts/evaluate.py --model_name_or_path runs/finetuned "
        "--data_dir data/chest --split_column official_split --group_column_name patient_id",
        "versions": VERSIONS,
    }
    other = 0.6 * probabilities + 0.4 / num_classes
    shuffled = np.where(rng.random(len(labels))[:, None] < 0.2, other[:, ::-1], other)
    results["comparison"] = compare_models(
        labels, probabilities, shuffled, ids, num_resamples=num_resamples
    )
    results["compared_with"] = "runs/evaluation_from_scratch"
    evaluation, model, pretrained = (
        folder / part for part in ("evaluation", "finetuned", "pretrained")
    )
    for part in (evaluation, model, pretrained):
        part.mkdir(parents=True)
    results["model_name_or_path"] = str(model)
    write_json(evaluation / "all_results.json", results)
    with open(evaluation / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["file_name", "group", "label", "predicted", *(f"probability_{n}" for n in names)]
        )
        for i, label in enumerate(labels):
            row = [f"image_{i}.png", groups[i], names[label], names[decided[i]]]
            writer.writerow([*row, *probabilities[i]])
    write_figures(
        evaluation / "figures", to_json(results), labels, probabilities, calibrated, ids,
        num_resamples=num_resamples,
    )  # fmt: skip
    write_model_folders(model, pretrained, names)
    write_json(evaluation / "audit.json", audit(names))
    return evaluation


def write_json(path, value):
    path.write_text(json.dumps(to_json(value), indent=2), encoding="utf-8")


def write_model_folders(model, pretrained, names):
    trained = {
        "best_step": 480, "best_eval_roc_auc": 0.912, "best_eval_accuracy": 0.84,
        "train_runtime": 1311.0, "train_images_per_second": 61.2, "num_train_images": 1420,
        "chosen_by": "roc_auc", "epoch": 30.0, "num_processes": 1, "learning_rate_peak": 5e-4,
        "versions": VERSIONS,
    }  # fmt: skip
    write_json(model / "all_results.json", trained)
    (model / "finetune_recipe.yaml").write_text(
        "finetune:\n  data_dir: data/chest\n  split_column: official_split\n"
        f"  group_column_name: patient_id\n  model_name_or_path: {pretrained}\n"
        "  metric_for_best_model: roc_auc\n  threshold_rule: youden\n  num_train_epochs: 30\n"
        "  seed: 42\n  mixup: 0.2\n"
    )
    config = {"architectures": ["SSSDForImageClassification"], "hidden_size": 192,
              "num_hidden_layers": 12, "image_size": 112, "patch_size": 14,
              "preparation": {"windows": [[-600, 1500]]}}  # fmt: skip
    write_json(model / "config.json", config)
    write_json(
        model / "splits.json",
        {
            "how": {"split_column": "official_split", "group_column_name": "patient_id"},
            "train": [f"train_{i}.png" for i in range(1420)],
            "validation": [f"validation_{i}.png" for i in range(240)],
            "test": [f"image_{i}.png" for i in range(213)],
        },
    )
    write_json(pretrained / "all_results.json", {**trained, "train_runtime": 5400.0, "epoch": 400})
    (pretrained / "pretrain_recipe.yaml").write_text("pretrain:\n  num_train_epochs: 400\n")
    for path in (model / "curves.png", pretrained / "reconstructions.png"):
        shade = np.tile(np.linspace(0, 255, 900, dtype=np.uint8), (300, 1))
        Image.fromarray(shade).save(path)


def audit(names):
    """audit.json's content."""
    findings = [
        Finding(
            "leakage", "critical", "6 of 70 (8.6%) groups of test, with 19 of 213 (8.9%) of its "
            "images, are also in train.", "Split by whole groups.",
            ["image_3.png (test, covid) and train_9.png (train, covid)"], {"part": "test"},
        ),
        Finding(
            "shortcut", "warning", "Thumbnails of 16 x 16 pixels predict the label on test: ridge "
            "64.8% (AUC 0.701), nearest neighbour 66.2% (AUC 0.690); the majority rate is 53.1%.",
            "Report these beside your model's figures, which must beat them.",
        ),
        Finding("class_balance", "note", f"The class {names[-1]} is rare.", "Judge by ROC AUC."),
    ]  # fmt: skip
    thumbnails = {
        "majority_accuracy": 0.531, "ridge_accuracy": 0.648, "ridge_auc": 0.701,
        "nearest_neighbor_accuracy": 0.662, "nearest_neighbor_auc": 0.690, "verdict": "warning",
    }  # fmt: skip
    files = {
        "majority_accuracy": 0.531, "logistic_accuracy": 0.558, "forest_accuracy": 0.563,
        "each": {"image size": 0.54, "file bytes": 0.55}, "verdict": "",
    }  # fmt: skip
    return {
        "data": "data/chest", "split_column": "official_split",
        "group_column_name": "patient_id",
        "images": {
            "train": dict.fromkeys(names, 710), "validation": dict.fromkeys(names, 120),
            "test": dict.fromkeys(names, 106),
        },
        "findings": [one.to_dict() for one in findings],
        "shortcuts": {
            "part": "test", "num_train": 1420, "num_test": 213, "files": files,
            "thumbnails": thumbnails,
        },
        "pairs": [], "num_pairs": 12, "versions": VERSIONS,
    }  # fmt: skip
