"""One small JSON for each run of a study: what was asked for, and what was said of each test image.

Images and patients are named by digests: the files hold no image, no file name and no path.
"""

import csv
import hashlib
import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..evaluation.metrics import classification_metrics, to_json
from ..evaluation.protocols import Draw
from .arguments import SCRIPTS
from .parsing import as_dict, parse
from .protocol import folder_name

# of the options: where things lie and how much is said; nothing that changes a result
LEFT_OUT = {
    "data_dir", "output_dir", "cache_dir", "model_name_or_path", "resume_from_checkpoint",
    "overwrite_output_dir", "splits_file", "report_to", "compare_with", "audit_dir",
    "pretraining_dir", "push_to_hub", "hub_model_id", "report",
}  # fmt: skip
# these are kept, but two runs that differ in them are runs of one kind: speed and what is written,
# and what a record is named by
NOT_COMPARED = LEFT_OUT | {
    "cache", "logging_steps", "checkpointing_steps", "checkpointing_minutes", "save_total_limit",
    "per_device_eval_batch_size", "num_resamples", "aggregation", "subgroup_columns",
    "hub_private_repo", "hub_revision", "hub_tag", "split_column", "seed", "seeds",
}  # fmt: skip
UNKNOWN = object()  # the value of an option that there no longer is
TRAININGS = ("pretrain", "finetune")
METRICS = ("accuracy", "balanced_accuracy", "roc_auc", "recall", "specificity", "f1")


def digest(data: str, name: str) -> str:
    """12 hexadecimal digits for an image or patient `name` of the data set `data`."""
    return hashlib.sha256(f"{data}/{name}".encode()).hexdigest()[:12]


def revision() -> str:
    """The commit of the code, "+" where files differ from it; "unknown" outside of a repository."""
    here = Path(__file__).parent
    try:
        name = _git(here, "rev-parse", "--short=9", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no", "--", "..")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if changed else "")


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def comparable(options: dict[str, Any]) -> dict[str, Any]:
    """Of the options of a script, those that two runs of one kind have in common, as JSON has
    them."""
    return json.loads(json.dumps({k: v for k, v in options.items() if k not in NOT_COMPARED}))


@cache
def defaults(script: str) -> dict[str, Any]:
    """What a script does where an option is not given; {} for what is no script."""
    return comparable(as_dict(*parse(script, "", []))) if script in SCRIPTS else {}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """In what two runs, or a run and what is asked for, are not of one kind; both are records or
    what `make_record` takes as `decided`.

    A record may be older than an option is: an option that only one of them has is compared with
    its default. Scripts that only one has are not compared, but both must have pretrained, or
    neither, and be a baseline, or neither.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for name, default in (("data", None), ("external", []), ("started_from", {})):
        first, second = before.get(name, default), now.get(name, default)
        if first != second:
            found[name, f"{first} -> {second}"] = []
    stages = before.get("options", {}), now.get("options", {})
    for stage in (*TRAININGS, "baseline"):
        if (stage in stages[0]) != (stage in stages[1]):
            there = ["done" if stage in part else "not done" for part in stages]
            found[stage, " -> ".join(there)] = []
    for stage in stages[0].keys() & stages[1].keys():
        first, second = (comparable(part[stage]) for part in stages)
        usual = defaults(stage)
        for name in first.keys() | second.keys():
            values = [part.get(name, usual.get(name, UNKNOWN)) for part in (first, second)]
            if values[0] != values[1] and UNKNOWN not in values:
                found.setdefault((name, f"{values[0]} -> {values[1]}"), []).append(stage)
    return sorted(
        f"{name} ({', '.join(sorted(where))}): {values}" if where else f"{name}: {values}"
        for (name, values), where in found.items()
    )


def make_record(
    folders: dict[str, Path],
    variant: str,
    split: str,
    seed: int,
    decided: dict[str, Any],
    revisions: list[str],
) -> dict[str, Any]:
    """What is kept of a run whose stages lie in `folders` (evaluate, finetune and, unless it began
    from random weights, pretrain).

    Args:
        decided: the data set's name "data", with which names are digested; "external" and
            "started_from"; "options" of each script, of which those that have no folder are kept.
        revisions: of the code; several where it changed before the run was done.
    """
    data = decided["data"]
    results = {stage: _read(folder / "all_results.json") for stage, folder in folders.items()}
    options = {k: v for k, v in decided["options"].items() if k not in TRAININGS}
    for stage in TRAININGS:
        if stage in folders:
            recipe = yaml.safe_load((folders[stage] / f"{stage}_recipe.yaml").read_text())
            kept = {k: v for k, v in recipe[stage].items() if k not in LEFT_OUT}
            options[stage] = kept
    with open(folders["evaluate"] / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = results["evaluate"]["labels"]
    # learned from, too: they chose the checkpoint
    validation = len(_read(folders["finetune"] / "splits.json")["validation"])
    groups = [digest(data, row["group"]) for row in rows] if "group" in rows[0] else None
    minutes = {
        stage: round(results[stage]["train_runtime"] / 60, 2)
        for stage in TRAININGS
        if stage in folders
    }
    named = {
        "versions": results["finetune"]["versions"],
        "hardware": results["finetune"]["hardware"],
        "minutes": minutes,
    }
    judged = {
        "num_train_images": results["finetune"]["num_train_images"] + validation,
        "metrics": {name: to_json(results["evaluate"][name]) for name in METRICS},
        "labels": names,
        "images": [digest(data, row["file_name"]) for row in rows],
        "groups": groups,
        "truth": [names.index(row["label"]) for row in rows],
        "probabilities": [
            [round(float(row[f"probability_{n}"]), 6) for n in names] for row in rows
        ],
    }
    place = {"data": data, "variant": variant, "split": split, "seed": seed}
    return _record(place, revisions, named, {**decided, "options": options}, judged)


def _record(place: dict, revisions: list[str], named: dict, decided: dict, judged: dict) -> dict:
    """The entries in their order."""
    revision = {"revision": ", then ".join(revisions)}
    kept = {name: decided[name] for name in ("external", "started_from", "options")}
    return {**place, **revision, **named, **kept, **judged}


def simple_record(
    found: dict[str, Any],
    variant: str,
    split: str,
    seed: int,
    decided: dict[str, Any],
    revisions: list[str],
) -> dict[str, Any]:
    """The same of a baseline.

    Args:
        found: as `simple_runs.run_simple` returns it.
        decided, revisions: see `make_record`.
    """
    data, groups = decided["data"], found["groups"]
    metrics = classification_metrics(found["truth"], found["probabilities"])
    named = {name: found[name] for name in ("versions", "hardware", "minutes")}
    judged = {
        "num_train_images": found["num_train_images"],
        "metrics": {name: to_json(metrics[name]) for name in METRICS},
        "labels": found["labels"],
        "images": [digest(data, name) for name in found["images"]],
        "groups": None if groups is None else [digest(data, name) for name in groups],
        "truth": found["truth"],
        "probabilities": np.round(found["probabilities"], 6).tolist(),
    }
    place = {"data": data, "variant": variant, "split": split, "seed": seed}
    return _record(place, revisions, named, decided, judged)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def record_path(results_dir: Path, study: str, variant: str, split: str, seed: int) -> Path:
    return results_dir / study / folder_name(variant) / f"{folder_name(split)}-seed_{seed}.json"


def write_record(path: Path, record: dict[str, Any]) -> None:
    """A line for each entry: hundreds of images would be thousands of lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f" {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in record.items()]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    temporary.replace(path)


def read_records(results_dir: Path, study: str) -> dict[str, dict[tuple[str, int], dict[str, Any]]]:
    """variant -> (split, seed) -> record.

    Raises:
        ValueError: a file that is no record.
    """
    found: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    for path in sorted((results_dir / study).glob("*/*.json")):
        try:
            record = _read(path)
            place = record["split"], record["seed"]
            found.setdefault(record["variant"], {})[place] = record
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: no record of a run ({error!r}); delete it") from error
    return found


def draw_of(record: dict[str, Any]) -> Draw:
    """The record's predictions, images in the order of their digests."""
    order = np.argsort(record["images"])
    probabilities = np.array(record["probabilities"], dtype=np.float64)[order]
    groups = record["groups"]
    return Draw(
        split=record["split"],
        repeat=0,
        seed=record["seed"],
        file_names=[record["images"][i] for i in order],
        labels=np.array(record["truth"])[order],
        probabilities=probabilities / probabilities.sum(axis=1, keepdims=True),
        groups=None if groups is None else np.array(groups)[order],
        num_train=record["num_train_images"],
    )
