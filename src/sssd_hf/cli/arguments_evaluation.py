"""Options of what reads data and models: evaluation, prediction, audit, embeddings, protocols."""

from dataclasses import dataclass

from ..data.duplicates import MAX_DISTANCE, MIN_CORRELATION
from ..data.findings import KINDS
from ..evaluation.aggregation import METHODS as AGGREGATIONS
from .options import check_ranges, option


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
    other_data: bool = option(
        False,
        "The images are of another data set than the training's: files and groups that are called "
        "like its own are others.",
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
    aggregate_by: str = option(
        "none",
        "One answer for each file (a volume, a multi-frame DICOM file) or folder (a series) "
        "instead of each image.",
        choices=["none", "file", "folder"],
    )
    aggregation: str = option(
        "mean",
        "How the images of one become one answer (calibrated, where the model is); its label is "
        "the most probable class, for the threshold was fitted on single images.",
        choices=list(AGGREGATIONS),
    )

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
class ReproduceArguments:
    _argument_group_name = "study"

    data_dir: str | None = option(None, "Folder of the images of the recipe's data set.")
    external_dir: str | None = option(
        None, "Where the folders of other sets lie (default: beside --data_dir)."
    )
    variants: str = option("", "Variants of the recipe's plan, by comma (default: all).")
    protocols: str = option("", "Protocols of the recipe's plan, by comma (default: all).")
    output_dir: str = option("runs/reproduce", "Where checkpoints, evaluations and reports go.")
    results_dir: str = option("recipes/results", "Where the record of each run goes.")
    cards_dir: str | None = option(
        None, "Where the card of the study goes (default: cards/ in --results_dir)."
    )
    report: bool = option(True, "Write report.html of each run, with its images, in --output_dir.")
    tables_only: bool = option(False, "Write tables and card from the records that are there.")
