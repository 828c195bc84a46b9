"""Options of the models and of both trainings."""

from dataclasses import dataclass

from ..evaluation.calibration import parse_rule
from .options import check_ranges, option


@dataclass
class ModelArguments:
    _argument_group_name = "model"

    model_name_or_path: str | None = option(
        None,
        "Start from this checkpoint, a folder or a name on the Hub: SSSD, ViTMAE (such as "
        "facebook/vit-mae-base), ViT, or the original MAE's .pth. Default: random weights.",
    )
    model_revision: str = option("main", "Branch, tag or commit of the checkpoint.")
    model_size: str = option(
        "tiny",
        "Size of a new model: tiny (192 wide), small (384), base (768).",
        choices=["tiny", "small", "base"],
    )
    decoder: str = option(
        "light",
        "Decoder of a new model: light, for small data, or mae (512 x 8).",
        choices=["light", "mae"],
    )
    image_size: int | None = option(
        None, "Side of the square the model sees, in pixels (default: the checkpoint's, or 112)."
    )
    patch_size: int | None = option(None, "Side of a patch (default: the checkpoint's, or 16).")
    num_channels: int | None = option(
        None, "1 (grey) or 3 (RGB) (default: the checkpoint's, or 1)."
    )
    config_overrides: str | None = option(
        None, "Other fields of the config, as name=value,name=value (such as qkv_bias=false)."
    )


@dataclass
class DistillationArguments:
    _argument_group_name = "pretraining losses"

    mask_ratio: float | None = option(
        None, "Share of patches hidden (default: the checkpoint's, or 0.75)."
    )
    norm_pix_loss: bool | None = option(
        None,
        "Reconstruct pixels normalised by patch: true or false (default: the checkpoint's, or "
        "true).",
    )
    distillation: str = option(
        "stable",
        "Self-distillation preset; mae switches it off. stable and global cost next to nothing, "
        "sd_mae, whose heads are large, makes a step of small 1.3 to 1.7 and one of tiny 2.1 to "
        "2.8 times as long on a CPU, one of the recipes' network 3.5 to 4 times.",
        choices=["stable", "sd_mae", "global", "mae"],
    )
    distillation_weight: float | None = option(None, "Weight of the loss (default: the preset's).")


@dataclass
class PretrainAugmentation:
    _argument_group_name = "augmentation"

    min_crop_scale: float = option(
        0.5, "Smallest share of the image's area in a random crop; low values cut lesions out."
    )
    max_crop_scale: float = option(
        1.0, "Largest share; above 1 the crop shows the image smaller, mirrored at its edges."
    )
    horizontal_flip: float = option(0.5, "Probability of a horizontal flip.")
    vertical_flip: float = option(0.0, "Probability of a vertical flip.")
    rotation: float = option(0.0, "Largest rotation to either side, degrees.")
    shear: float = option(0.0, "Largest lean of vertical lines to either side, degrees.")
    translation: float = option(
        0.0, "Largest shift along each axis, as a share of the side; mirrored beyond the edge."
    )
    brightness: float = option(0.0, "Largest relative change of brightness, 0 to 1.")
    contrast: float = option(0.0, "Largest relative change of contrast, 0 to 1.")
    gamma: float = option(
        0.0, "Largest relative change of the exponent of grey values; 0.5: from 1/1.5 to 1.5."
    )
    blur: float = option(
        0.0, "Largest standard deviation of a blur, in pixels of what the model sees."
    )
    noise: float = option(
        0.0, "Largest standard deviation of Gaussian noise, as a share of the 255 grey values."
    )
    erasing: float = option(
        0.0, "Probability that a rectangle, 0.02 to 0.2 of the image, is set to its mean."
    )

    def __post_init__(self) -> None:
        check_ranges(
            self,
            min_crop_scale=(0.01, 1),
            max_crop_scale=(self.min_crop_scale, 4),
            horizontal_flip=(0, 1),
            vertical_flip=(0, 1),
            rotation=(0, 180),
            shear=(0, 45),
            translation=(0, 1),
            brightness=(0, 1),
            contrast=(0, 1),
            gamma=(0, 4),
            blur=(0, 10),
            noise=(0, 1),
            erasing=(0, 1),
        )


@dataclass
class FinetuneAugmentation(PretrainAugmentation):
    min_crop_scale: float = option(0.7, "Smallest share of the image's area in a random crop.")
    max_crop_scale: float = option(
        1.3, "Largest share; above 1 the crop shows the image smaller, mirrored at its edges."
    )
    rotation: float = option(10.0, "Largest rotation to either side, degrees.")
    brightness: float = option(0.1, "Largest relative change of brightness, 0 to 1.")
    contrast: float = option(0.2, "Largest relative change of contrast, 0 to 1.")
    mixup_alpha: float = option(
        0.0, "Mix images and labels with weights from Beta(alpha, alpha), such as 0.2; 0: off."
    )
    cutmix_alpha: float = option(
        0.0, "Replace a box by that of another image, its area from Beta(alpha, alpha); 0: off."
    )
    mix_probability: float = option(
        1.0, "Share of the images that are mixed, where mixup or cutmix is on."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, mixup_alpha=(0, 100), cutmix_alpha=(0, 100), mix_probability=(0, 1))


@dataclass
class TrainingArguments:
    _argument_group_name = "training"

    output_dir: str = option("runs/out", "Where the checkpoint and all results go.")
    num_train_epochs: float = option(100.0, "Epochs; --max_train_steps overrides them.")
    max_train_steps: int | None = option(None, "Optimiser steps.")
    per_device_train_batch_size: int = option(64, "Images of one process in one pass.")
    per_device_eval_batch_size: int = option(128, "The same in evaluation.")
    gradient_accumulation_steps: int = option(1, "Passes before an optimiser step.")
    learning_rate: float | None = option(None, "Peak learning rate (default: see below).")
    base_learning_rate: float | None = option(
        None, "Peak learning rate for 256 images: learning_rate = base x global batch / 256."
    )
    weight_decay: float = option(0.05, "AdamW's; not on norms, biases, positions, tokens.")
    warmup_ratio: float = option(0.05, "Share of the steps in which the learning rate rises.")
    num_warmup_steps: int | None = option(None, "The same in steps.")
    max_grad_norm: float | None = option(None, "Clip the gradient to this norm.")
    mixed_precision: str | None = option(
        None,
        "no, bf16 or fp16 (default: accelerate's setting; bf16 on a GPU that has it). bf16 on a "
        "processor without it computes in fp32.",
        choices=["no", "bf16", "fp16"],
    )
    num_warmup_epochs: float | None = option(None, "The same in epochs.")
    ema_decay: float = option(
        0.0,
        "Average the weights over the steps with this decay (such as 0.999), and evaluate and save "
        "the average; 0: off.",
    )
    torch_compile: bool = option(
        False, "Compile the model: some minutes at the start, faster steps after."
    )
    logging_steps: int = option(10, "Steps between two lines of metrics.jsonl.")
    report_to: str = option(
        "none", "Also log to tensorboard, trackio, wandb or mlflow (several by comma), or none."
    )
    eval_epochs: float = option(
        10.0, "Epochs between two evaluations on held-out images; 0: at the end alone."
    )
    eval_steps: int | None = option(None, "The same in steps (for streams).")
    early_stopping_patience: int = option(
        0, "End after so many evaluations without a better one; 0: never."
    )
    checkpointing_steps: str | None = option(
        None, "Write the state of the run every so many steps, or every 'epoch'."
    )
    checkpointing_minutes: float = option(
        10.0, "And after so many minutes since the last time; 0: not by time."
    )
    save_total_limit: int = option(2, "How many of these checkpoints are kept; 0: all.")
    resume_from_checkpoint: str | None = option(
        None,
        "Go on exactly where a run into the same --output_dir was interrupted: 'latest' (starts "
        "anew where there is no checkpoint yet), or a checkpoint's folder.",
    )
    seed: int = option(0, "Of weights, order, masks, augmentation and of splits the script makes.")
    overwrite_output_dir: bool = option(False, "Write into an --output_dir that holds a result.")
    push_to_hub: bool = option(
        False,
        "Publish on the Hub: the newest state at each checkpoint, in the background, and the "
        "result at the end; files with images or names in them stay here. The token is that of "
        "`hf auth login` or of HF_TOKEN.",
    )
    hub_model_id: str | None = option(
        None, "Repository, OWNER/NAME or NAME (default: the output folder's name)."
    )
    hub_private_repo: bool = option(True, "Whether the repository is private.")
    hub_revision: str = option("main", "Branch to publish on; made where there is none.")
    hub_tag: str | None = option(None, "Tag for the published result, such as v1.")

    def __post_init__(self) -> None:
        check_ranges(
            self,
            per_device_train_batch_size=(1, None),
            per_device_eval_batch_size=(1, None),
            gradient_accumulation_steps=(1, None),
            num_train_epochs=(0, None),
            max_train_steps=(1, None),
            logging_steps=(1, None),
            eval_epochs=(0, None),
            learning_rate=(0, None),
            base_learning_rate=(0, None),
            weight_decay=(0, None),
            warmup_ratio=(0, 1),
            num_warmup_steps=(0, None),
            num_warmup_epochs=(0, None),
            max_grad_norm=(0, None),
            ema_decay=(0, 0.999999),
            eval_steps=(1, None),
            early_stopping_patience=(0, None),
            checkpointing_minutes=(0, None),
            save_total_limit=(0, None),
        )
        if self.learning_rate is not None and self.base_learning_rate is not None:
            raise ValueError("Give --learning_rate or --base_learning_rate, not both.")
        steps = self.checkpointing_steps
        if steps not in (None, "epoch") and not (steps.isdigit() and int(steps) > 0):
            raise ValueError(
                f"--checkpointing_steps {steps}: expected a number of steps, or 'epoch'."
            )
        if not self.push_to_hub and (self.hub_model_id or self.hub_tag):
            raise ValueError("--hub_model_id and --hub_tag need --push_to_hub true.")


@dataclass
class PretrainTraining(TrainingArguments):
    output_dir: str = option("runs/pretrained", "Where the checkpoint and all results go.")
    num_train_epochs: float = option(400.0, "Epochs; --max_train_steps overrides them.")
    learning_rate: float | None = option(None, "Peak learning rate (default 5e-4).")
    probe_epochs: float = option(
        50.0,
        "Epochs between two looks at how well the frozen features tell the labels apart (k-NN and "
        "linear probe on held-out images, where labels exist); 0: never.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, probe_epochs=(0, None))


@dataclass
class FinetuneTraining(TrainingArguments):
    output_dir: str = option("runs/finetuned", "Where the checkpoint and all results go.")
    num_train_epochs: float = option(50.0, "Epochs; --max_train_steps overrides them.")
    learning_rate: float | None = option(None, "Peak learning rate (default 5e-4).")
    eval_epochs: float = option(
        1.0, "Epochs between two evaluations on validation; 0: at the end alone."
    )
    layer_decay: float = option(0.75, "Factor of the learning rate from one layer to that below.")
    drop_path_rate: float = option(0.1, "Stochastic depth of the last layer.")
    label_smoothing: float = option(0.1, "Label smoothing of the training loss.")
    pooling: str = option("cls", "What the head reads.", choices=["cls", "mean"])
    freeze_encoder: bool = option(
        False, "Train the head alone, on the features as they are (a linear probe)."
    )
    class_weights: str = option(
        "none",
        "Weights of the classes in the loss: none, balanced (a rare class counts as much as a "
        "frequent one), or one number a class by comma, in the labels' order.",
    )
    balanced_sampling: bool = option(
        False, "Show every class equally often: a rare class's images come several times an epoch."
    )
    metric_for_best_model: str = option(
        "roc_auc",
        "Metric on validation that chooses the checkpoint; 'last' keeps the last one.",
        choices=["roc_auc", "accuracy", "balanced_accuracy", "f1", "log_loss", "last"],
    )

    threshold_rule: str = option(
        "youden",
        "How the threshold of the positive class is chosen on validation: youden (sensitivity + "
        "specificity), sensitivity>=0.95 (the greatest specificity with at least that), cost=5 (a "
        "missed positive costs as much as 5 false alarms), or none (the most probable class).",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, layer_decay=(0, 1))
        if self.threshold_rule != "none":
            try:
                parse_rule(self.threshold_rule)
            except ValueError as error:
                raise ValueError(f"--threshold_rule: {error}, or none.") from None
