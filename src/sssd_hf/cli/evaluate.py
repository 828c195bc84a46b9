"""Evaluation of a fine-tuned classifier on the test split.

`python scripts/evaluate.py --model_name_or_path runs/finetuned --data_dir FOLDER`. Writes
all_results.json (metrics with 95 % intervals; per class, patient and subgroup; calibration and
operating point), predictions.csv, figures and report.html into --output_dir. Where the data name no
split, the one that finetune.py cut (its splits.json) is used; nothing is cut here. --test_split all
evaluates on all images, such as those of another hospital. Each reading of a test split is noted in
the model's folder (evaluations.jsonl).
"""

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..data.sources import require_labels
from ..evaluation.calibration import apply_calibration
from ..evaluation.comparison import compare_models
from ..evaluation.figures import write_figures
from ..evaluation.metrics import SHOWN, to_json
from ..evaluation.report import write_report
from ..evaluation.summary import summarise
from . import common
from .arguments import DataArguments
from .classifiers import load_classifier
from .data import column_of, decode_split, groups_of, load_data, preparation_of
from .explain import write_explanations
from .parsing import command_line, parse
from .split_sources import (
    ALL_IMAGES,
    count_pretrained_on,
    count_shared_groups,
    rows_to_evaluate,
    warn_of_seen_images,
)

logger = logging.getLogger("sssd_hf")


def write_predictions(
    output: Path,
    file_names: list[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray | None,
    names: list[str],
    calibration: dict[str, Any] | None,
) -> None:
    """predictions.csv: the model's own probabilities, the calibrated ones where it has them, and
    the class it decides for."""
    import pandas as pd

    calibrated, decided = apply_calibration(probabilities, calibration)
    columns: dict[str, Any] = {"file_name": file_names}
    if groups is not None:
        columns["group"] = groups
    columns |= {"label": [names[i] for i in labels], "predicted": [names[i] for i in decided]}
    columns |= {f"probability_{name}": probabilities[:, i] for i, name in enumerate(names)}
    if calibration:
        columns |= {f"calibrated_{name}": calibrated[:, i] for i, name in enumerate(names)}
    pd.DataFrame(columns).to_csv(output / "predictions.csv", index=False)


def read_predictions(folder: Path, names: list[str], file_names: list[str], labels: np.ndarray):
    """(images, classes) probabilities that another evaluation wrote, in the order of these images.

    Raises:
        ValueError: it is of other images or classes, or labels them otherwise.
    """
    import pandas as pd

    path = folder / "predictions.csv"
    if not path.is_file():
        raise ValueError(f"--compare_with {folder}: there is no predictions.csv of an evaluation.")
    table = pd.read_csv(path, dtype={"file_name": str, "label": str}, keep_default_na=False)
    columns = [f"probability_{name}" for name in names]
    missing = [name for name in ("file_name", "label", *columns) if name not in table.columns]
    if missing:
        raise ValueError(
            f"{path}: there is no column {missing[0]}; expected an evaluation of a model of the "
            f"classes {', '.join(names)}."
        )
    table = table.set_index("file_name")
    if set(table.index) != set(file_names) or len(table) != len(file_names):
        both = len(set(table.index) & set(file_names))
        raise ValueError(
            f"{path}: has {len(table)} images, {both} of them among these {len(file_names)}; "
            "models are compared on the same images: evaluate both on the same split."
        )
    table = table.loc[file_names]
    differ = int((table["label"].to_numpy() != np.array(names)[labels]).sum())
    if differ:
        raise ValueError(f"{path}: {differ} images have other labels there; evaluate anew.")
    return table[columns].to_numpy(dtype=np.float64)


def note_reading(model: str, results: dict[str, Any]) -> int | None:
    """Note in the model's folder that these test images were read; how often they were, this time
    included, or None for a model on the Hub or in a folder that can't be written to."""
    path = Path(model) / "evaluations.jsonl"
    if not path.parent.is_dir():
        return None
    record = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **{name: results[name] for name in ("split_column", "test_split", "num_test_images")},
        **{name: results[name] for name in ("accuracy", "roc_auc")},
        # what the images are called tells data sets apart, whose splits have the same names
        "images": results["test_images_digest"],
    }
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(to_json(record)) + "\n")
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return None
    lines = [line for line in lines if isinstance(line, dict)]
    return sum(line.get("images") == record["images"] for line in lines)


def print_summary(results: dict[str, Any]) -> None:
    for name in SHOWN:
        low, high = results["intervals"][name]
        interval = f"95 % interval {low:.3f} to {high:.3f}" if low < high else "no interval"
        print(f"{name:18s} {results[name]:.3f}  ({interval})")
    point, whole = results["operating_point"], results["aggregated"]
    if point:
        values = point["metrics"]
        print(
            f"at the threshold {point['threshold']:.3f} of {point['positive_label']} (chosen by "
            f"{point['rule']} on {point['fitted_on']}): sensitivity {values['recall']:.3f}, "
            f"specificity {values['specificity']:.3f}, accuracy {values['accuracy']:.3f}"
        )
    if whole and "metrics" in whole:
        values = whole["metrics"]
        print(
            f"of {whole['count']} groups ({whole['method']} of their images): accuracy "
            f"{values['accuracy']:.3f}, roc_auc {values['roc_auc']:.3f}"
        )
    for column, found in results["subgroups"].items():
        if found["worst"]:
            worst = found["worst"]
            print(
                f"worst of {column}: {worst['value']}, {worst['metric']} {worst['estimate']:.3f} "
                f"({worst['low']:.3f} to {worst['high']:.3f}), all images {worst['overall']:.3f}"
            )
    if results["comparison"]:
        for name in ("accuracy", "roc_auc"):
            row = results["comparison"]["metrics"][name]
            print(
                f"{name} minus that of {results['compared_with']}: {row['difference']:+.3f} "
                f"({row['low']:+.3f} to {row['high']:+.3f}), p {row['p']:.3f}"
            )


def count_seen(
    checkpoint: str, dataset: Any, rows: list[int], data: DataArguments, other_data: bool
) -> dict[str, int | None]:
    """How many of the test images the model was trained or pretrained on, and how many of their
    groups; None of other data: what only has the same name is not counted."""
    names = (
        "num_test_images_seen",
        "num_test_images_pretrained_on",
        "num_groups_shared_with_training",
    )
    if other_data:
        return dict.fromkeys(names)
    splits = Path(checkpoint) / "splits.json"
    counts = (
        warn_of_seen_images(splits, dataset, rows),
        count_pretrained_on(splits, dataset, rows),
        count_shared_groups(splits, dataset, rows, data.group_column_name),
    )
    return dict(zip(names, counts, strict=True))


def main(argv: list[str] | None = None) -> int:
    data_arguments, arguments = parse("evaluate", __doc__, argv)
    checkpoint, output = arguments.model_name_or_path, Path(arguments.output_dir)
    classifier = load_classifier(checkpoint)
    known, calibration = classifier.label_names, classifier.calibration
    trained = classifier.preparation
    preparation = preparation_of(classifier.config, trained.size, data_arguments)
    if preparation != trained:
        logger.warning(
            "--window, --resize_mode or --slice_axis differ from those the model was trained with "
            f"({trained.to_dict()})"
        )
    dataset = load_data(data_arguments, preparation.slice_axis)
    names = require_labels(dataset)
    if not set(names) <= set(known):
        raise ValueError(
            f"The data have the labels {', '.join(names)}; the model {checkpoint} knows "
            f"{', '.join(known)}. Evaluate on data with the model's labels."
        )
    if data_arguments.positive_label not in (None, known[1]):
        logger.warning(
            f"--positive_label {data_arguments.positive_label} is not the model's: {known[1]} "
            "counts as the positive class here, as in its training"
        )
    rows, source = rows_to_evaluate(dataset, data_arguments, checkpoint, arguments.other_data)
    digest = common.digest_of(dataset.select(rows)["file_name"][:])
    columns = [c.strip() for c in arguments.subgroup_columns.split(",") if c.strip()]
    for column in columns:
        column_of(dataset, rows, column, "--subgroup_columns")  # before the work
    (output / "bad_files.csv").unlink(missing_ok=True)
    test = decode_split(
        dataset, rows, preparation, data_arguments, title="test images", output=output
    )
    rows = test.rows.tolist()  # without the files left out by --skip_bad_files
    seen = count_seen(checkpoint, dataset, rows, data_arguments, arguments.other_data)
    probabilities = classifier.probabilities(test, arguments.per_device_eval_batch_size)
    labels = np.array([known.index(names[i]) for i in test.labels])
    groups = groups_of(dataset, rows, data_arguments.group_column_name)
    file_names = dataset.select(rows)["file_name"][:]
    comparison = None
    if arguments.compare_with:
        other = read_predictions(Path(arguments.compare_with), known, file_names, labels)
        options = {"num_resamples": arguments.num_resamples, "seed": arguments.seed}
        comparison = compare_models(labels, probabilities, other, groups, **options)

    unit = "images" if groups is None else f"groups ({data_arguments.group_column_name})"
    whole = data_arguments.test_split == ALL_IMAGES  # then no column is looked at
    results = {
        **summarise(
            labels,
            probabilities,
            known,
            groups,
            calibration=calibration,
            subgroup_columns={
                column: column_of(dataset, rows, column, "--subgroup_columns") for column in columns
            },
            aggregation=arguments.aggregation,
            num_resamples=arguments.num_resamples,
            seed=arguments.seed,
        ),
        "comparison": comparison,
        "compared_with": arguments.compare_with,
        "interval_method": f"95 % percentile bootstrap of {unit}",
        "num_test_images": len(rows),
        **seen,
        "num_test_groups": None if groups is None else len(set(groups)),
        "num_test_groups_by_class": None
        if groups is None
        else {name: len(set(groups[labels == i])) for i, name in enumerate(known)},
        "test_images_digest": digest,
        "group_column_name": data_arguments.group_column_name,
        "other_data": arguments.other_data,
        "split_source": source,
        "split_column": None if whole else data_arguments.split_column,
        "test_split": data_arguments.test_split or "test",
        "labels": known,
        "positive_label": known[1] if len(known) == 2 else None,
        "model_name_or_path": checkpoint,
        "num_members": len(classifier.models),
        "command": command_line("evaluate", argv),
        "versions": common.versions(),
    }
    results["times_test_was_read"] = note_reading(checkpoint, results)
    output.mkdir(parents=True, exist_ok=True)
    write_predictions(output, file_names, labels, probabilities, groups, known, calibration)
    if arguments.report:
        calibrated = apply_calibration(probabilities, calibration)[0] if calibration else None
        write_figures(
            output / "figures", to_json(results), labels, probabilities, calibrated, groups,
            seed=arguments.seed,
        )  # fmt: skip
        explained = write_explanations(
            classifier.models[0],
            test,
            classifier.statistics[0],
            labels,
            probabilities,
            file_names,
            known,
            output / "figures",
        )
        results["explanations"] = explained and explained["randomisation"]
    common.write_json(output / "all_results.json", to_json(results))
    if arguments.report:
        write_report(output, checkpoint, arguments.pretraining_dir, arguments.audit_dir)
    if groups is None:
        logger.warning(
            "no --group_column_name: the intervals are too narrow if patients have several images"
        )
    print_summary(results)
    shown = f"; to read: {output / 'report.html'}" if arguments.report else ""
    print(f"on {len(rows)} test images; written to {output}{shown}")
    return 0
