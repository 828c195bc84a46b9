"""The options of all scripts: dataclasses, from which come the command line, the YAML recipes and
the README's table."""

from dataclasses import dataclass, field
from typing import Any

from ..data.duplicates import MAX_DISTANCE, MIN_CORRELATION
from ..data.findings import KINDS
from ..data.windows import parse_windows
from ..evaluation.aggregation import METHODS as AGGREGATIONS
from ..evaluation.calibration import parse_rule


def option(default: Any = None, help: str = "", **kwargs: Any) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help, **kwargs})
    return field(default=default, metadata={"help": help, **kwargs})


def check_ranges(arguments: Any, **ranges: tuple[float, float | None]) -> None:
    """Raises ValueError for an option outside of (lowest, highest); None is no limit, or unset."""
    for name, (lowest, highest) in ranges.items():
        value = getattr(arguments, name)
        if value is not None and not (
            lowest <= value <= (float("inf") if highest is None else highest)
        ):
            allowed = f"at least {lowest}" if highest is None else f"{lowest} to {highest}"
            raise ValueError(f"--{name} is {value}; expected {allowed}.")


@dataclass
class DataArguments:
    _argument_group_name = "data"

    data_dir: str | None = option(
        None,
        "Folder of images: class folders, split folders of class folders, or any folders with a "
        "metadata.csv (columns file_name, label, and whatever splits and groups need). Or such a "
        "table alone, .csv, .jsonl or .parquet, with paths from its folder or absolute ones.",
    )
    dataset_name: str | None = option(None, "Data set on the Hub, instead of --data_dir.")
    dataset_config_name: str | None = option(None, "Configuration of --dataset_name.")
    dataset_revision: str | None = option(None, "Branch, tag or commit of --dataset_name.")
    cache_dir: str | None = option(None, "Where downloads are kept (default: the Hub's cache).")
    image_column_name: str = option(
        "image", "Column of the images in a Hub data set, or of their paths in a table."
    )
    label_column_name: str = option(
        "label", "Column of the labels; '' takes none (pretraining on folders that are no classes)."
    )
    positive_label: str | None = option(
        None,
        "Which of two classes is the positive one, whose sensitivity is reported (default: the "
        "last in the order of names).",
    )
    group_column_name: str | None = option(
        None, "Column of what must stay together in a split and in intervals, such as the patient."
    )
    window: str | None = option(
        None,
        "Of DICOM and NIfTI values in HU: lung, mediastinum, bone or centre/width (-600/1500); "
        "three by comma for three channels (default: the checkpoint's, or the file's own).",
    )
    resize_mode: str | None = option(
        None,
        "squash to the model's size, letterbox (whole image, black beside it) or center_crop "
        "(default: the checkpoint's, or squash).",
        choices=["squash", "letterbox", "center_crop"],
    )
    slice_axis: str | None = option(
        None,
        "Axis of the patient along which NIfTI volumes are cut (default: the checkpoint's, or "
        "axial).",
        choices=["axial", "coronal", "sagittal"],
    )
    split_column: str | None = option(
        None, "Column that says which split an image is in (default: 'split', where there is one)."
    )
    splits_file: str | None = option(
        None,
        "The splits.json of another run, whose splits are taken as they are, before any column.",
    )
    train_split: str = option("train", "Value of the split column to train on; several by comma.")
    validation_split: str | None = option(
        None, "Value to choose the checkpoint on (default: 'val' or 'validation', if there)."
    )
    test_split: str | None = option(None, "Value to evaluate on (default: 'test', if there).")
    train_val_split: float = option(
        0.15, "Share of the training images cut for validation where the data name none; 0: none."
    )
    train_test_split: float = option(
        0.2, "Share of all images cut for testing where there is no split column; 0: none."
    )
    max_train_samples: int | None = option(
        None, "Train on this many images only, drawn by chance (for a trial)."
    )
    cache: str = option(
        "auto",
        "Where decoded images lie: on the device, in memory, on disk, or none (decoded at each "
        "access); auto: the first of these with room. disk, and auto with more than 64 MB, keep "
        "them for the next run in $HF_HOME/sssd_hf/decoded, which may be deleted.",
        choices=["auto", "device", "memory", "disk", "none"],
    )
    cache_size: int | None = option(
        None,
        "Shorter side that training images are decoded at, for random crops to be taken from "
        "(default: 1.25 times the model's). Evaluation always decodes at the model's size.",
    )
    skip_bad_files: bool = option(
        False,
        "Leave out images that can't be read, instead of stopping; bad_files.csv names them, and "
        "splits.json still does.",
    )
    streaming: bool = option(
        False,
        "Read --dataset_name, or shards in --data_dir (WebDataset *.tar, or Parquet files with "
        "images inside), as a stream: for sets that fit no disk.",
    )
    label_names: str | None = option(
        None,
        "Names of a stream's classes by comma, in the order of their numbers 0, 1, ..., where the "
        "stream has none (fine-tuning on WebDataset shards).",
    )
    shuffle_buffer_size: int = option(
        1000, "Images of a stream that are read ahead and shuffled among each other."
    )

    def __post_init__(self) -> None:
        check_ranges(
            self,
            max_train_samples=(1, None),
            cache_size=(8, None),
            shuffle_buffer_size=(1, None),
        )
        if self.splits_file is not None:
            if self.streaming:
                raise ValueError("--splits_file names images, a stream has none: leave it out.")
            self.split_column = None  # such as a recipe's: the file decides
        if self.window is not None:
            parse_windows(self.window)
        if self.label_names is not None and not self.streaming:
            raise ValueError(
                "--label_names is for --streaming; a folder or table has its labels' names in it."
            )


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

    mask_ratio: float | None = option(None, "Share of patches hidden (default 0.75).")
    norm_pix_loss: bool | None = option(
        None, "Reconstruct pixels normalised by patch: true (default) or false."
    )
    distillation: str = option(
        "stable",
        "Self-distillation preset; mae switches it off.",
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
        "no, bf16 or fp16 (default: accelerate's setting; bf16 on a GPU that has it).",
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


@dataclass
class EvaluateArguments:
    _argument_group_name = "evaluation"

    model_name_or_path: str = option("runs/finetuned", "The fine-tuned checkpoint.")
    output_dir: str = option("runs/evaluation", "Where all_results.json and predictions.csv go.")
    per_device_eval_batch_size: int = option(128, "Images in one pass.")
    num_resamples: int = option(2000, "Bootstrap resamples of the intervals.")
    aggregation: str = option(
        "mean",
        "How the images of a group become one answer, for figures of patients beside those of "
        "images: mean, max or noisy_or of their probabilities, or none.",
        choices=[*AGGREGATIONS, "none"],
    )
    subgroup_columns: str = option(
        "", "Columns of the metadata, by comma, for each of whose values metrics are reported."
    )
    compare_with: str | None = option(
        None, "The --output_dir of another model's evaluation on the same images, to compare with."
    )
    report: bool = option(
        True, "Draw the figures, explain the most confident answers, and write report.html."
    )
    pretraining_dir: str | None = option(
        None, "The --output_dir of the pretraining, whose curves the report then shows."
    )
    audit_dir: str | None = option(
        None, "The --output_dir of the audit of these data, whose findings the report then shows."
    )
    seed: int = option(0, "Of the bootstrap.")

    def __post_init__(self) -> None:
        check_ranges(self, per_device_eval_batch_size=(1, None), num_resamples=(1, None))


@dataclass
class PredictArguments:
    _argument_group_name = "prediction"

    model_name_or_path: str = option("runs/finetuned", "The fine-tuned checkpoint.")
    images: list[str] = option([], "Files and folders (searched through) to classify.")
    output_file: str | None = option(
        None, "Where to write: .csv or .jsonl (default: CSV to the screen)."
    )
    per_device_eval_batch_size: int = option(64, "Images in one pass.")

    def __post_init__(self) -> None:
        check_ranges(self, per_device_eval_batch_size=(1, None))


@dataclass
class AuditArguments:
    _argument_group_name = "audit"

    output_dir: str = option("runs/audit", "Where audit.json, audit.txt and pairs.png go.")
    fail_on: str = option(
        "",
        "Exit with status 1 on findings of these kinds, by comma: leakage, label_conflict, "
        "unreadable, class_balance, shortcut, duplicates, or any.",
    )
    near_correlation: float = option(
        MIN_CORRELATION, "Least correlation of the thumbnails of near copies."
    )
    near_hash_distance: int = option(
        MAX_DISTANCE, "Most differing bits, of 64, of their perceptual hashes."
    )
    max_pairs: int = option(24, "Pairs of copies that pairs.png shows, the worst first.")
    num_workers: int | None = option(
        None, "Processes that decode (default: one for each processor)."
    )
    seed: int = option(0, "Of splits the script makes; as in fine-tuning, so are the splits.")

    def __post_init__(self) -> None:
        check_ranges(
            self,
            near_correlation=(0, 1),
            near_hash_distance=(0, 64),
            max_pairs=(0, 200),
            num_workers=(1, None),
        )
        unknown = set(self.kinds_to_fail_on()) - set(KINDS)
        if unknown:
            raise ValueError(
                f"--fail_on {self.fail_on}: {', '.join(sorted(unknown))} is no kind of finding; "
                f"expected of {', '.join(KINDS)} one or several by comma, or any."
            )

    def kinds_to_fail_on(self) -> list[str]:
        kinds = [kind.strip() for kind in self.fail_on.split(",") if kind.strip()]
        return list(KINDS) if "any" in kinds else kinds


@dataclass
class EmbedArguments:
    _argument_group_name = "embeddings"

    model_name_or_path: str = option(
        "runs/pretrained",
        "The checkpoint whose encoder is used, a folder or a name on the Hub: SSSD of either "
        "training, ViTMAE, ViT, or the original MAE's .pth.",
    )
    model_revision: str = option("main", "Branch, tag or commit of the checkpoint.")
    random_weights: bool = option(
        False,
        "Take the checkpoint's architecture with random weights, to compare its features with.",
    )
    output_dir: str = option("runs/embeddings", "Where embeddings.parquet and all results go.")
    pooling: str = option(
        "mean_patches",
        "An image's features from the encoder's tokens: cls (the CLS token), mean_patches (the "
        "mean of the patches, what --pooling mean of fine-tuning reads), or mean (of all tokens).",
        choices=["cls", "mean", "mean_patches"],
    )
    embed_splits: str | None = option(
        None, "train, validation or test, several by comma (default: all images)."
    )
    per_device_eval_batch_size: int = option(128, "Images in one pass.")
    evaluate: bool = option(
        False,
        "Also measure how well the frozen features tell the labels apart: k-NN, linear probe and "
        "few-shot curves, with figures.",
    )
    num_neighbors: int = option(20, "Neighbours that vote in the k-NN.")
    few_shot_percents: list[float] = option(
        [1.0, 2.0, 5.0, 10.0, 25.0, 100.0], "Shares of the training labels, in percent."
    )
    few_shot_repeats: int = option(10, "Random subsets of each share.")
    projection: str = option(
        "pca",
        "The map of the features in embedding.png: pca, or umap (pip install umap-learn).",
        choices=["pca", "umap"],
    )
    num_resamples: int = option(2000, "Bootstrap resamples of the intervals.")
    seed: int = option(0, "Of splits the script makes, few-shot subsets, bootstrap and UMAP.")

    def __post_init__(self) -> None:
        check_ranges(
            self,
            per_device_eval_batch_size=(1, None),
            num_neighbors=(1, None),
            few_shot_repeats=(1, None),
            num_resamples=(1, None),
            seed=(0, None),
        )
        if not all(0 < percent <= 100 for percent in self.few_shot_percents):
            raise ValueError(
                f"--few_shot_percents is {self.few_shot_percents}; expected numbers above 0, at "
                "most 100."
            )
        unknown = set(self.parts_to_embed() or ()) - {"train", "validation", "test"}
        if unknown:
            raise ValueError(
                f"--embed_splits {self.embed_splits}: expected train, validation or test, several "
                "by comma."
            )
        if self.evaluate and self.embed_splits is not None:
            raise ValueError("--evaluate needs all splits: leave out --embed_splits.")

    def parts_to_embed(self) -> list[str] | None:
        """The splits asked for; None: all images, also those of no split."""
        if self.embed_splits is None:
            return None
        return [part.strip() for part in self.embed_splits.split(",")]


@dataclass
class PushArguments:
    _argument_group_name = "publishing"

    model_dir: str = option(
        "runs/finetuned", "The checkpoint to publish: a training's output, or an export of it."
    )
    hub_model_id: str | None = option(
        None, "Repository, OWNER/NAME or NAME (default: the model folder's name)."
    )
    hub_private_repo: bool = option(True, "Whether the repository is private.")
    hub_revision: str = option("main", "Branch to publish on; made where there is none.")
    hub_tag: str | None = option(None, "Tag for the published result, such as v1.")
    commit_message: str = option("Publish the model", "What the commit is called.")
    evaluation_dir: str | None = option(
        None, "What evaluate.py wrote about this model: for the card, and its figures."
    )
    pretraining_dir: str | None = option(
        None, "The pretraining checkpoint, to be published in pretraining/ of the same repository."
    )
    training_dir: str | None = option(
        None,
        "Where the training left its records, if --model_dir is an export of its output (default: "
        "where the export says).",
    )
    audit_file: str | None = option(None, "audit.json of audit.py: its findings go into the card.")
    include: list[str] = option(
        [], "Patterns of files to publish although they are not on the list; look at them first."
    )
    license: str | None = option(None, "Of the weights, as the Hub names it, such as apache-2.0.")
    license_name: str | None = option(None, "Its name, where --license is other.")
    dataset_title: str | None = option(None, "What the card calls the data.")
    base_model: str | None = option(None, "The Hub's model that the training started from.")
    watts: float | None = option(
        None, "Power of the machine in training, for the card's energy (default: an assumption)."
    )
    card_only: bool = option(False, "Write README.md into --model_dir, and publish nothing.")
    dry_run: bool = option(False, "Say what would be published and what not; ask nobody.")

    def __post_init__(self) -> None:
        check_ranges(self, watts=(0, None))


@dataclass
class CrossValidateArguments:
    _argument_group_name = "protocol"

    output_dir: str = option(
        "runs/cross_validation", "Where the runs, their ensemble and the pooled results go."
    )
    cross_validation: int | None = option(
        None,
        "Number of folds. Without it the splits are those of --split_column (several by comma), or "
        "the one that the other scripts would take.",
    )
    cross_validation_repeats: int = option(1, "How often, with other folds each time.")
    cross_validation_on: str = option(
        "all",
        "Images that are divided into folds: all, or the training and validation images of "
        "--split_column, so that its test images stay unread.",
        choices=["all", "training"],
    )
    split_seed: int = option(0, "Of the folds and of what is cut off for validation.")
    seeds: str = option("0", "Seeds of the training, by comma; each split is run with each.")
    pretrain_on_all: bool = option(
        False,
        "Pretrain once, on the images of all parts, test images among them (no labels), instead of "
        "anew on each training part.",
    )
    skip_pretraining: bool = option(
        False, "Fine-tune from --model_name_or_path, or from random weights."
    )
    compare_with: str | None = option(
        None, "The --output_dir of another cross-validation on the same splits, to compare with."
    )
    num_resamples: int = option(2000, "Bootstrap resamples of the intervals.")

    def __post_init__(self) -> None:
        check_ranges(
            self,
            cross_validation=(2, None),
            cross_validation_repeats=(1, None),
            num_resamples=(1, None),
        )
        if self.cross_validation is None and self.cross_validation_repeats > 1:
            raise ValueError("--cross_validation_repeats repeats --cross_validation: give both.")
        if self.pretrain_on_all and self.skip_pretraining:
            raise ValueError("Give --pretrain_on_all or --skip_pretraining, not both.")
        self.list_of_seeds()

    def list_of_seeds(self) -> list[int]:
        words = [word.strip() for word in self.seeds.split(",")]
        if not all(word.isdigit() for word in words) or len(set(map(int, words))) < len(words):
            raise ValueError(
                f"--seeds {self.seeds}: expected different whole numbers by comma, such as 0,1,2."
            )
        return [int(word) for word in words]


@dataclass
class ExportArguments:
    _argument_group_name = "export"

    model_name_or_path: str = option("runs/finetuned", "The checkpoint, a folder or Hub name.")
    to: str = option(
        "vit",
        "What to write: vit (stock ViT, any transformers, no code), dinov2 (the same for models "
        "with mean pooling), timm, onnx, vit_mae (encoder and decoder of a pretrained one), or "
        "space (the demo, ready for the Hub's Spaces).",
        choices=["vit", "dinov2", "vit_mae", "timm", "onnx", "space"],
    )
    pretrained_model: str | None = option(
        None, "With --to space: a checkpoint of pretraining, whose reconstructions are shown too."
    )
    output_dir: str = option("runs/exported", "The folder to write, which must not exist yet.")
    fold_temperature: bool = option(
        False,
        "Divide the head by the calibration's temperature, so that the softmax of the logits is "
        "the calibrated probability (default: the calibration is kept beside them).",
    )
    int8: bool = option(
        False,
        "With --to onnx: 8-bit weights for the CPU. With --data_dir or --dataset_name, static "
        "and dynamic quantisation are tried (ranges from training images), the faster that loses "
        "at most 0.5 points of accuracy on validation is kept, and speeds are reported.",
    )
    overwrite_output_dir: bool = option(
        False, "Replace an --output_dir that holds an earlier export."
    )
    seed: int = option(0, "Of splits the script makes; as in fine-tuning, so are the splits.")

    def __post_init__(self) -> None:
        if self.int8 and self.to != "onnx":
            raise ValueError(f"--int8 is for --to onnx, not for --to {self.to}.")
        if self.pretrained_model and self.to != "space":
            raise ValueError(f"--pretrained_model is for --to space, not for --to {self.to}.")
        if self.fold_temperature and self.to == "space":
            raise ValueError("--fold_temperature is not for --to space, which calibrates itself.")
        if self.fold_temperature and self.to == "vit_mae":
            raise ValueError("--fold_temperature is for classifiers; --to vit_mae writes none.")


@dataclass
class DemoArguments:
    _argument_group_name = "demo"

    model_name_or_path: list[str] = option(
        ["runs/finetuned"],
        "The fine-tuned checkpoint or ensemble, a folder or Hub name; several are shown side by "
        "side.",
    )
    pretrained_model: str | None = option(
        None, "A checkpoint of pretraining, whose reconstructions are shown too."
    )
    title: str = option("Medical image classifier", "What the page is called.")
    server_name: str = option(
        "127.0.0.1",
        "Address to listen at. The default is reached from this computer alone; 0.0.0.0 from all, "
        "without a password.",
    )
    server_port: int | None = option(None, "Port (default: the first free one from 7860 on).")
    max_files: int = option(300, "Files that are taken at once.")
    max_slices: int = option(1000, "Slices and images that are taken at once.")
    max_file_mb: int = option(200, "Size of a file, at most, in MB.")

    def __post_init__(self) -> None:
        check_ranges(
            self,
            server_port=(0, 65535),
            max_files=(1, None),
            max_slices=(1, None),
            max_file_mb=(1, 2048),
        )
        if not self.model_name_or_path:
            raise ValueError("--model_name_or_path is empty; name at least one model.")


SCRIPTS: dict[str, tuple[type, ...]] = {
    "pretrain": (
        DataArguments,
        ModelArguments,
        DistillationArguments,
        PretrainAugmentation,
        PretrainTraining,
    ),
    "finetune": (DataArguments, ModelArguments, FinetuneAugmentation, FinetuneTraining),
    "evaluate": (DataArguments, EvaluateArguments),
    "predict": (PredictArguments,),
    "audit": (DataArguments, AuditArguments),
    "embed": (DataArguments, EmbedArguments),
    "push_to_hub": (PushArguments,),
    "cross_validate": (DataArguments, CrossValidateArguments),
    "export": (DataArguments, ExportArguments),
    "demo_app": (DemoArguments,),
}
