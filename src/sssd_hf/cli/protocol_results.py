"""The end of a protocol: predictions of all runs, pooled figures, comparison, ensemble."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..data.splits import write_splits
from ..evaluation.metrics import to_json
from ..evaluation.protocols import (
    Draw,
    check_same_draws,
    compare_draws,
    compare_pooled,
    pool,
    pooled_results,
    size_ratio,
    summarise_draws,
)
from .classifiers import save_ensemble
from .common import versions, write_json
from .data import groups_of
from .finetune import calibrate
from .protocol import Options, Run
from .protocol_words import in_words, print_results

TABLE = "out_of_fold.csv"


def pretraining_saw_test_images(options: Options) -> bool | None:
    """None where it is not known: training began from a checkpoint that was made elsewhere."""
    if options.protocol.pretrain_on_all:
        return True
    start = options.parsed[options.stages()[0]][1].model_name_or_path
    return None if start else False


def write_results(output: Path, runs: list[Run], dataset: Any, options: Options) -> None:
    """out_of_fold.csv, all_results.json and, of folds, ensemble/; and what they say, on the screen.

    Raises:
        ValueError: runs that do not fit together, or a --compare_with of other splits.
    """
    protocol = options.protocol
    tables = [read_run(output / run.name / "evaluate" / "predictions.csv") for run in runs]
    names = label_names(output / runs[0].name / "finetune")
    data = options.data
    table = write_table(
        output / TABLE, runs, tables, dataset, data.group_column_name, data.max_train_samples
    )
    draws = draws_of(table, names)
    resampling = {"num_resamples": protocol.num_resamples, "seed": 0}
    kind = kind_of(options, runs)
    pooled = None if kind == "named splits" else pool(draws)
    results: dict[str, Any] = {
        "protocol": kind,
        "num_runs": len(runs),
        "pretraining_saw_test_images": pretraining_saw_test_images(options),
        "num_images_tested": int(table["file_name"].nunique()),
        "num_groups_tested": int(table["group"].nunique()) if "group" in table else None,
        "labels": names,
        "positive_label": names[1] if len(names) == 2 else None,
        "interval_method": "95 % percentile bootstrap of "
        + (f"groups ({options.data.group_column_name})" if "group" in table else "images"),
        "pooled": pooled and pooled_results(pooled, **resampling),
        "test_train_ratio": size_ratio(draws),
        "over_splits": summarise_draws(draws),
        "comparison": None,
    }
    if protocol.compare_with:
        results["comparison"] = compare(
            Path(protocol.compare_with), draws, pooled, names, resampling
        )
    results["in_words"] = in_words(results, runs, options)
    if kind == "cross-validation":
        results["ensemble"] = write_ensemble(output, runs, pooled, names, dataset, options)
    results["command"] = options.command
    results["versions"] = versions()
    write_json(output / "all_results.json", to_json(results))
    print_results(results)
    print(f"written to {output}")


def write_ensemble(
    output: Path,
    runs: list[Run],
    pooled: list[Draw],
    names: list[str],
    dataset: Any,
    options: Options,
) -> dict[str, Any]:
    """The models of all folds as one, calibrated on each image's mean probability by the models
    that did not learn from it."""
    mean = np.mean([draw.probabilities for draw in pooled], axis=0)
    each = "the model" if len(pooled) == 1 else f"the mean of the {len(pooled)} models"
    fitted_on = f"out-of-fold predictions of {len(mean)} images, by {each} of other folds"
    rule = options.parsed["finetune"][-1].threshold_rule
    calibration = calibrate(pooled[0].labels, mean, rule, fitted_on)
    members = {run.name: output / run.name / "finetune" for run in runs}
    folder = output / "ensemble"
    save_ensemble(folder, members, names, calibration)
    seen = sorted({row for run in runs for rows in run.splits.values() for row in rows})
    how = {"cross_validation": options.protocol.cross_validation, "all": "seen by a member"}
    write_splits(folder / "splits.json", dataset, {"train": seen}, how)  # evaluate.py warns of them
    return {"num_members": len(members), "calibration": calibration}


def kind_of(options: Options, runs: list[Run]) -> str:
    if options.protocol.cross_validation:
        return "cross-validation"
    return "one split" if len({run.split for run in runs}) == 1 else "named splits"


def read_run(path: Path) -> pd.DataFrame:
    """predictions.csv of an evaluation, or out_of_fold.csv; a label "NA" is no gap."""
    texts = dict.fromkeys(("file_name", "label", "predicted", "group", "split"), str)
    return pd.read_csv(path, dtype=texts, keep_default_na=False)


def label_names(checkpoint: Path) -> list[str]:
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    names = {int(number): name for number, name in config["id2label"].items()}
    return [names[i] for i in range(len(names))]


def write_table(
    path: Path,
    runs: list[Run],
    tables: list[pd.DataFrame],
    dataset: Any,
    group_column: str | None,
    most: int | None,
) -> pd.DataFrame:
    """All predictions, each with its run, and how many images the run's model learned from: of the
    training split at `most` (--max_train_samples)."""
    rows = {name: row for row, name in enumerate(dataset["file_name"][:])}
    parts = []
    for run, part in zip(runs, tables, strict=True):
        learned = len(run.splits["train"][:most]) + len(run.splits["validation"])
        marks = {"run": run.name, "split": run.split, "repeat": run.repeat, "seed": run.seed}
        columns: dict[str, Any] = {**marks, "num_train": learned, "file_name": part["file_name"]}
        if group_column is not None:
            columns["group"] = groups_of(
                dataset, [rows[n] for n in part["file_name"]], group_column
            )
        rest = {name: part[name] for name in part.columns if name not in ("file_name", "group")}
        parts.append(pd.DataFrame({**columns, **rest}))
    table = pd.concat(parts, ignore_index=True)
    draft = path.with_suffix(".tmp")
    table.to_csv(draft, index=False)
    draft.replace(path)
    return table


def draws_of(table: pd.DataFrame, names: list[str]) -> list[Draw]:
    draws = []
    number = {name: i for i, name in enumerate(names)}
    for _, part in table.groupby("run", sort=False):
        first = part.iloc[0]
        draws.append(
            Draw(
                split=first["split"],
                repeat=int(first["repeat"]),
                seed=int(first["seed"]),
                file_names=part["file_name"].tolist(),
                labels=part["label"].map(number).to_numpy(dtype=np.int64),
                probabilities=part[[f"probability_{n}" for n in names]].to_numpy(dtype=np.float64),
                groups=part["group"].to_numpy(dtype=object) if "group" in part else None,
                num_train=int(first["num_train"]),
                decided=(
                    part["predicted"].map(number).to_numpy(dtype=np.int64)
                    if f"calibrated_{names[0]}" in part
                    else None
                ),
            )
        )
    return draws


def check_comparable(folder: Path, runs: list[Run], dataset: Any) -> None:
    """Raises ValueError unless `folder` holds a finished protocol with the splits of `runs`; said
    before anything is trained."""
    path = folder / TABLE
    if not path.is_file() or not (folder / "all_results.json").is_file():
        raise ValueError(f"--compare_with {folder}: holds no finished cross_validate.py.")
    names = dataset["file_name"][:]
    there = read_run(path).groupby("split", sort=False)["file_name"].agg(set).to_dict()
    here = {run.split: {names[row] for row in run.splits["test"]} for run in runs}
    # a file that could not be read is in the splits, and in no prediction
    if set(there) != set(here) or any(not there[split] <= here[split] for split in here):
        counts = (
            ", ".join(f"{split} ({len(names)} images tested)" for split, names in part.items())
            for part in (there, here)
        )
        raise ValueError(
            f"--compare_with {folder}: its splits are {next(counts)}, here they are "
            f"{next(counts)}; expected the same, with the same test images."
        )


def compare(
    folder: Path, draws: list[Draw], pooled: list[Draw] | None, names: list[str], resampling: dict
) -> dict[str, Any]:
    """This protocol minus the one in `folder`.

    Raises:
        ValueError: its labels or images are other ones.
    """
    there = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))["labels"]
    if there != names:
        raise ValueError(
            f"--compare_with {folder}: its labels are {', '.join(there)}, here they are "
            f"{', '.join(names)}; expected the same in the same order."
        )
    others = draws_of(read_run(folder / TABLE), names)
    try:
        check_same_draws(draws, others)
    except ValueError as error:
        raise ValueError(f"--compare_with {folder}: {error}.") from error
    return {
        "with": str(folder),
        "over_splits": compare_draws(draws, others),
        "pooled": pooled and compare_pooled(pooled, pool(others), **resampling),
    }
