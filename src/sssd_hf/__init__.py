"""SSSD: masked-autoencoder pretraining with self-distillation, as Hugging Face models.

Importing the package registers the models with the Auto classes of transformers.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)

from .configuration_sssd import DISTILLATION_PRESETS, SSSDConfig
from .modeling_sssd import (
    SSSDForImageClassification,
    SSSDForPreTraining,
    SSSDForPreTrainingOutput,
    SSSDModel,
)

__version__ = "0.1.0"
__all__ = [
    "DISTILLATION_PRESETS",
    "SSSDConfig",
    "SSSDForImageClassification",
    "SSSDForPreTraining",
    "SSSDForPreTrainingOutput",
    "SSSDModel",
]

AutoConfig.register("sssd", SSSDConfig)
AutoModel.register(SSSDConfig, SSSDModel)
AutoModelForPreTraining.register(SSSDConfig, SSSDForPreTraining)
AutoModelForImageClassification.register(SSSDConfig, SSSDForImageClassification)
