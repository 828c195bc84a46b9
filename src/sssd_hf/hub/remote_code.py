"""Saving a checkpoint together with the model's code, for users who don't have the package."""

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
    package = Path(__file__).parent.parent
    for name in MODULES:
        shutil.copyfile(package / f"{name}.py", folder / f"{name}.py")
