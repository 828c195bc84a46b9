"""The options of all scripts: dataclasses, from which come the command line, the YAML recipes and
the README's table. Those of training and of evaluation lie in files of their own."""

from dataclasses import dataclass

from ..data.windows import parse_windows
from .arguments_evaluation import (
    AuditArguments,
    CrossValidateArguments,
    EmbedArguments,
    EvaluateArguments,
    PredictArguments,
    ReproduceArguments,
)
from .arguments_training import (
    DistillationArguments,
    FinetuneAugmentation,
    FinetuneTraining,
    ModelArguments,
    PretrainAugmentation,
    PretrainTraining,
    TrainingArguments,
)
from .options import check_ranges, option

__all__ = [
    "SCRIPTS",
    "AuditArguments",
    "CrossValidateArguments",
    "DataArguments",
    "DistillationArguments",
    "EmbedArguments",
    "EvaluateArguments",
    "ExportArguments",
    "FinetuneAugmentation",
    "FinetuneTraining",
    "ModelArguments",
    "PredictArguments",
    "PretrainAugmentation",
    "PretrainTraining",
    "PushArguments",
    "ReproduceArguments",
    "TrainingArguments",
]


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
        "last in the order of names). Said in fine-tuning: a model keeps it.",
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
    test_split: str | None = option(
        None, "Value to evaluate on (default: 'test', if there); evaluate.py: all, for all images."
    )
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
class PushArguments:
    _argument_group_name = "publishing"

    model_dir: str = option(
        "runs/finetuned", "The checkpoint to publish: a training's output, or an export of it."
    )
    form: str = option(
        "plain",
        "What is published of a fine-tuned classifier: plain (export.py's ViT, or DINOv2 of one "
        "with mean pooling, which anybody loads without this package's code) or sssd (as it is). "
        "Other checkpoints are published as they are.",
        choices=["plain", "sssd"],
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
    "reproduce": (ReproduceArguments,),
}
