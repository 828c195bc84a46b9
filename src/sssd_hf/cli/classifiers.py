"""What classifies images: one checkpoint, or an ensemble of several, behind one interface.

An ensemble is a folder with ensemble.json (its members, their labels, its calibration) and a
folder of each member, which is a checkpoint of its own. It is for `predict.py` and `evaluate.py`;
other programs load a member.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import cached_file

from ..configuration_sssd import as_pair
from ..data.cache import Images
from ..data.preparation import Preparation
from ..modeling_sssd import SSSDForImageClassification
from .batches import predict_probabilities
from .common import check_checkpoint, read_statistics, versions, write_json
from .data import preparation_of

ENSEMBLE = "ensemble.json"
# of a checkpoint's folder, what a member needs; the state and log of its training are not
MEMBER_FILES = ("config.json", "preprocessor_config.json", "*.safetensors*", "*.py")


@dataclass(frozen=True)
class Classifier:
    """Models whose softmax probabilities are averaged; one alone is its own average.

    Args:
        models: in evaluation mode, on one device, of the same classes and the same preparation.
        statistics: (mean, std) that each one's images are normalised with.
        preparation: how images become arrays.
        calibration: see `evaluation.calibration`; of the averages. None: not calibrated.
    """

    models: list[SSSDForImageClassification]
    statistics: list[tuple[list[float], list[float]]]
    preparation: Preparation
    calibration: dict[str, Any] | None

    @property
    def config(self) -> Any:
        """That of the first model; its calibration is not the ensemble's."""
        return self.models[0].config

    @property
    def label_names(self) -> list[str]:
        return [self.config.id2label[i] for i in range(self.config.num_labels)]

    def probabilities(self, images: Images, batch_size: int) -> np.ndarray:
        """(images, classes), not calibrated."""
        each = [
            predict_probabilities(model, images, statistics, batch_size)
            for model, statistics in zip(self.models, self.statistics, strict=True)
        ]
        return each[0] if len(each) == 1 else np.mean(each, axis=0)


def load_model(name: str, revision: str = "main", **options: Any) -> SSSDForImageClassification:
    """A fine-tuned classifier, for evaluation, in fp32.

    Args:
        options: What `from_pretrained` takes.

    Raises:
        ValueError: the checkpoint has no classifier.
    """
    model, info = SSSDForImageClassification.from_pretrained(
        name, revision=revision, output_loading_info=True, **{"dtype": torch.float32, **options}
    )
    if lacking := sorted(info["missing_keys"]):
        raise ValueError(
            f"--model_name_or_path {name}: {', '.join(lacking)} is missing, so this is no "
            "classifier (a new one would be random). Fine-tune it first (scripts/finetune.py); a "
            "pretrained checkpoint is exported by export.py --to vit_mae."
        )
    return model.eval()


def load_classifier(name: str, revision: str = "main", device: str | None = None) -> Classifier:
    """A checkpoint's folder or name on the Hub, or the same of an ensemble.

    Args:
        device: default: the GPU where there is one.

    Raises:
        ValueError: it has no classifier, or one whose classes do not exclude each other (several
            labels an image) or that has none (regression): softmax would be wrong. The folder is
            none of these, or the members of an ensemble do not fit together.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = _ensemble_folder(name, revision)
    if folder is None:
        check_checkpoint(name)
        members, calibration = [(name, revision)], None
    else:
        description = _read_description(folder)
        members = [(str(folder / member), "main") for member in description["members"]]
        calibration = description["calibration"]
    models, statistics, preparations = [], [], []
    for place, version in members:
        model = load_model(place, version)
        config = model.config
        kind = config.problem_type or "single_label_classification"
        if kind != "single_label_classification" or config.num_labels < 2:
            raise ValueError(
                f"--model_name_or_path {place}: its config has problem_type={config.problem_type} "
                f"and num_labels={config.num_labels}; expected single_label_classification with "
                "two classes or more, of which each image has one."
            )
        size = as_pair(config.image_size)
        models.append(model.to(device))
        statistics.append(read_statistics(place, config.num_channels, version))
        preparations.append(preparation_of(config, size))
    if folder is None:
        calibration = models[0].config.calibration
    classifier = Classifier(models, statistics, preparations[0], calibration)
    if folder is not None:
        for (place, _), model, preparation in zip(members, models, preparations):
            names = [model.config.id2label[i] for i in range(model.config.num_labels)]
            if names != description["labels"] or preparation != preparations[0]:
                raise ValueError(
                    f"{folder / ENSEMBLE}: the member {place} has the labels {', '.join(names)} "
                    f"and prepares images by {preparation.to_dict()}; expected the labels "
                    f"{', '.join(description['labels'])} and {preparations[0].to_dict()}."
                )
    return classifier


def _ensemble_folder(name: str, revision: str) -> Path | None:
    """Where the ensemble lies (a Hub's is fetched); None for anything else."""
    if Path(name).is_dir():
        return Path(name) if (Path(name) / ENSEMBLE).is_file() else None
    try:
        found = cached_file(
            name, ENSEMBLE, revision=revision, _raise_exceptions_for_missing_entries=False
        )
    except OSError as error:
        raise ValueError(
            f"--model_name_or_path {name}: there is no such folder here, and no such model could "
            f"be fetched from the Hub ({str(error).splitlines()[0]})."
        ) from error
    if not found:
        return None
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision))


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / ENSEMBLE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); make the ensemble again.") from error
    members = content.get("members") if isinstance(content, dict) else None
    missing = {"members", "labels", "calibration"} - set(content if members else {})
    named = isinstance(members, list) and all(isinstance(member, str) for member in members)
    if missing or not named:
        raise ValueError(
            f"{path}: lacks {', '.join(sorted(missing)) or 'names of members'}; expected what "
            "cross_validate.py writes."
        )
    for member in members:  # of an ensemble from elsewhere, nothing outside of its folder
        place = (folder / member).resolve()
        if folder.resolve() not in place.parents or not (place / "config.json").is_file():
            raise ValueError(
                f"{path}: the member {member} is no checkpoint in a folder below; copy the "
                "ensemble's folder as a whole."
            )
    return content


def save_ensemble(
    folder: Path,
    members: dict[str, Path],
    label_names: list[str],
    calibration: dict[str, Any] | None,
) -> None:
    """Copy checkpoints into `folder` (replaced as a whole) so that they classify together.

    Args:
        members: name -> checkpoint's folder.
    """
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    for name, checkpoint in members.items():
        place = draft / "members" / name
        place.mkdir(parents=True)
        for pattern in MEMBER_FILES:
            for file in checkpoint.glob(pattern):
                shutil.copyfile(file, place / file.name)
    write_json(
        draft / ENSEMBLE,
        {
            "members": [f"members/{name}" for name in members],
            "probabilities": "the mean of the members' softmax probabilities, then calibrated",
            "labels": label_names,
            "calibration": calibration,
            "versions": versions(),
        },
    )
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
