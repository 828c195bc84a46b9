"""What a model card is written from: the records beside a model."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sources:
    """What a card is written from; each but the config may be missing ({} or None)."""

    config: dict[str, Any]
    results: dict[str, Any]  # all_results.json of the training
    recipe: dict[str, Any]  # the options of the training
    evaluation: dict[str, Any] | None
    pretraining: tuple[dict[str, Any], dict[str, Any]] | None  # its results and recipe
    audit: dict[str, Any] | None

    @property
    def stage(self) -> str:
        """ "pretrain" or "finetune": what the model is."""
        classifies = any("ImageClassification" in a for a in self.config.get("architectures") or [])
        return "finetune" if classifies else "pretrain"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is none.

    Raises:
        ValueError: it holds something else.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} can't be read ({error}); run what wrote it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no object with names; run what wrote it again")
    return value


def read_recipe(folder: Path, stage: str) -> dict[str, Any]:
    """The options that a training left beside its output; {} where there are none."""
    import yaml

    path = folder / f"{stage}_recipe.yaml"
    recipe = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return (recipe or {}).get(stage) or {}


def read_sources(
    model_dir: Path,
    evaluation_dir: Path | None = None,
    pretraining_dir: Path | None = None,
    training_dir: Path | None = None,
    audit_file: Path | None = None,
) -> Sources:
    """Read what there is.

    Args:
        training_dir: where the training left its records, if the model is an export of its output;
            default: the folder that the export names, or the model's own.

    Raises:
        ValueError: a file that was named is missing, or the evaluation is of another model.
    """
    config = read_json(model_dir / "config.json")
    if not config:
        raise ValueError(
            f"--model_dir {model_dir}: there is no config.json; expected a checkpoint."
        )
    records = training_dir or exported_from(model_dir) or model_dir
    stage = Sources(config, {}, {}, None, None, None).stage
    evaluation = None
    if evaluation_dir:
        evaluation = read_json(evaluation_dir / "all_results.json")
        if "num_test_images" not in evaluation:
            raise ValueError(
                f"--evaluation_dir {evaluation_dir}: expected all_results.json of evaluate.py, "
                "with num_test_images."
            )
        check_same_model(evaluation, evaluation_dir, model_dir, records)
    pretraining = None
    if pretraining_dir:
        results = read_json(pretraining_dir / "all_results.json")
        pretraining = (results, read_recipe(pretraining_dir, "pretrain"))
    if audit_file and not audit_file.is_file():
        raise ValueError(f"--audit_file {audit_file}: there is no such file.")
    audit = read_json(audit_file) if audit_file else None
    results = read_json(records / "all_results.json")
    return Sources(config, results, read_recipe(records, stage), evaluation, pretraining, audit)


def exported_from(model_dir: Path) -> Path | None:
    """The folder on this machine that an export says it was made from; None for other models."""
    results = read_json(model_dir / "all_results.json")
    name = results.get("model_name_or_path")
    return Path(name) if "export" in results and name and Path(name).is_dir() else None


def check_same_model(
    evaluation: dict[str, Any], evaluation_dir: Path, model_dir: Path, records: Path
) -> None:
    """Raises ValueError where the evaluation says that it is of another folder that exists."""
    named = evaluation.get("model_name_or_path")
    own = [folder.resolve() for folder in (model_dir, records)]
    if named and Path(named).is_dir() and Path(named).resolve() not in own:
        raise ValueError(
            f"--evaluation_dir {evaluation_dir}: its figures are of {named}, not of {model_dir}. "
            "Evaluate this model; if it is an export of that one, pass --training_dir."
        )
