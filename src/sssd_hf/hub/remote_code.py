"""Saving a checkpoint together with the model's code, for users who don't have the package."""

import copy
import shutil
from pathlib import Path

from transformers import PreTrainedModel

MODULES = (
    "configuration_sssd",
    "modeling_sssd",
    "distillation_sssd",
    "conversion_sssd",
    "products_sssd",
)
AUTO_MAP = {
    "AutoConfig": "configuration_sssd.SSSDConfig",
    "AutoModel": "modeling_sssd.SSSDModel",
    "AutoModelForPreTraining": "modeling_sssd.SSSDForPreTraining",
    "AutoModelForImageClassification": "modeling_sssd.SSSDForImageClassification",
}


def save_with_code(model: PreTrainedModel, folder: str | Path) -> None:
    """`model.save_pretrained(folder)`, the files of its code, and an `auto_map` with which
    every Auto class loads the folder under `trust_remote_code=True`."""
    folder = Path(folder)
    before = getattr(model.config, "auto_map", None)
    model.config.auto_map = dict(AUTO_MAP)
    try:
        model.save_pretrained(folder)
    finally:
        model.config.auto_map = before
        if before is None:
            del model.config.auto_map
    for path in code_files():
        shutil.copyfile(path, folder / path.name)


def code_files() -> list[Path]:
    """The files of the models' code."""
    package = Path(__file__).parent.parent
    return [package / f"{name}.py" for name in MODULES]


def config_with_code(model: PreTrainedModel) -> str:
    """The config.json that `save_with_code` writes, without writing the weights."""
    config = copy.deepcopy(model.config)
    config.auto_map, config.architectures = dict(AUTO_MAP), [type(model).__name__]
    config.dtype = str(model.dtype).removeprefix("torch.")
    return config.to_json_string()
