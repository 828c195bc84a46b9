"""Embeddings: the features that a checkpoint's encoder gives each image.

`python scripts/embed.py --model_name_or_path runs/pretrained --data_dir FOLDER` writes
embeddings.parquet into --output_dir: a row for each image with file_name, label, group, split and
embedding, which pandas, pyarrow and datasets read. With --evaluate true it also measures how well
the frozen features tell the labels apart: k-NN and linear probe on the test split, with intervals,
and few-shot curves (few_shot.csv, figures/few_shot.png, figures/embedding.png). Strengths of
penalties are chosen on the validation split, never on the test split.
"""

import hashlib
import json
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..configuration_sssd import as_pair
from ..data.cache import Images
from ..data.preparation import Preparation
from ..data.sources import require_labels
from ..data.splits import PARTS
from ..evaluation.metrics import to_json
from ..modeling_sssd import SSSDModel
from . import common
from .arguments import DataArguments, EmbedArguments
from .batches import image_features
from .data import decode_split, groups_of, load_data, preparation_of, split_data
from .parsing import command_line, parse
from .split_sources import warn_of_seen_images

logger = logging.getLogger("sssd_hf")
ROW_GROUP = 10_000  # rows of the Parquet file that are read at a time


def load_encoder(arguments: EmbedArguments) -> SSSDModel:
    """The checkpoint's encoder, in evaluation mode, on the GPU where there is one.

    Raises:
        ValueError: weights are missing, which from_pretrained would draw by chance.
    """
    name = arguments.model_name_or_path
    common.check_checkpoint(name)
    model, info = SSSDModel.from_pretrained(
        name, revision=arguments.model_revision, output_loading_info=True, dtype=torch.float32
    )
    if arguments.random_weights:
        torch.manual_seed(arguments.seed)
        model = SSSDModel(model.config)
    elif info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(
            f"--model_name_or_path {name}: {len(missing)} weights of the encoder, such as "
            f"{missing[0]}, are not in the checkpoint: random ones would take their place. Give a "
            "whole checkpoint, or --random_weights true for features of random weights alone."
        )
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of the encoder's weights: which ones they were, wherever they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy())
    return digest.hexdigest()


def find_splits(
    dataset: Any, data: DataArguments, arguments: EmbedArguments
) -> dict[str, list[int]]:
    """Rows of each split: named by the data, or the checkpoint's own. Where neither names any, only
    --evaluate cuts some; else all three are empty."""
    if arguments.evaluate:
        splits = split_data(dataset, data, arguments.seed, None, arguments.model_name_or_path)
        for part in ("validation", "test"):
            if not splits[part]:
                raise ValueError(
                    f"--evaluate: there is no {part} split. Name one by --split_column and "
                    f"--{part}_split, or let one be cut by --train_val_split and "
                    "--train_test_split above 0."
                )
        return splits
    uncut = replace(data, train_val_split=0.0, train_test_split=0.0)
    splits = split_data(
        dataset, uncut, arguments.seed, None, arguments.model_name_or_path, check=False
    )
    if data.split_column is None and not (splits["validation"] or splits["test"]):
        return {part: [] for part in PARTS}
    return splits


def embed_images(
    model: SSSDModel,
    images: Images,
    statistics: tuple[list[float], list[float]],
    arguments: EmbedArguments,
) -> np.ndarray:
    """(images, hidden_size) fp32, with a progress bar."""
    batch_size = arguments.per_device_eval_batch_size
    features = np.empty((len(images), model.config.hidden_size), dtype=np.float32)
    with tqdm(total=len(images), desc="embed", unit="img", file=sys.stderr) as bar:
        for index in torch.arange(len(images)).split(batch_size):
            features[index] = image_features(
                model, images.select(index), statistics, batch_size, pooling=arguments.pooling
            )
            bar.update(len(index))
    return features


def write_embeddings(
    path: Path,
    columns: dict[str, list[str | None]],
    features: np.ndarray,
    description: dict[str, Any],
) -> None:
    """The columns and the features [N, width], as a column "embedding" of lists of one length; the
    description as JSON under "sssd_hf" in the schema's metadata. The file appears once it is whole.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = pa.array(np.ascontiguousarray(features, dtype=np.float32).ravel())
    arrays = {name: pa.array(column, pa.string()) for name, column in columns.items()}
    arrays["embedding"] = pa.FixedSizeListArray.from_arrays(values, features.shape[1])
    table = pa.table(arrays).replace_schema_metadata({"sssd_hf": json.dumps(description)})
    temporary = path.with_suffix(".tmp")
    pq.write_table(table, temporary, row_group_size=ROW_GROUP, use_dictionary=list(columns))
    temporary.replace(path)


def describe(
    model: SSSDModel,
    arguments: EmbedArguments,
    preparation: Preparation,
    statistics: tuple[list[float], list[float]],
) -> dict[str, Any]:
    """What the features are, so that others can be made that are comparable."""
    return {
        "model_name_or_path": arguments.model_name_or_path,
        "model_revision": arguments.model_revision,
        "commit": getattr(model.config, "_commit_hash", None),
        "weights_sha256": weights_digest(model),
        "random_weights": arguments.random_weights,
        "pooling": arguments.pooling,
        "image_size": list(preparation.size),
        "num_channels": preparation.num_channels,
        "image_mean": statistics[0],
        "image_std": statistics[1],
        "preparation": preparation.to_dict(),
        "versions": common.versions(),
    }


def evaluate_features(
    features: np.ndarray,
    labels: np.ndarray,
    parts: np.ndarray,
    groups: np.ndarray | None,
    class_names: list[str],
    arguments: EmbedArguments,
    output: Path,
) -> dict[str, Any]:
    """k-NN, linear probe and few-shot curves, their table and figures -> all_results.json's part.

    Args:
        features: (images, width); labels: (images,) indices of `class_names`; parts: (images,) the
            split's name, or ""; groups: (images,) or None.
    """
    import pandas as pd

    from ..evaluation.embedding_plots import plot_embedding, plot_few_shot, project
    from ..evaluation.few_shot import few_shot_curve, summarize
    from ..evaluation.intervals import bootstrap_intervals
    from ..evaluation.metrics import classification_metrics
    from ..evaluation.probes import choose_linear, class_probabilities, fit_knn, standardize

    count = len(class_names)
    rows = {part: np.flatnonzero(parts == part) for part in PARTS}
    train, validation, test = ((features[rows[part]], labels[rows[part]]) for part in PARTS)
    group_of = {part: None if groups is None else groups[rows[part]] for part in PARTS}
    knn = fit_knn(*train, arguments.num_neighbors)
    train_scaled, validation_scaled, test_scaled = standardize(train[0], validation[0], test[0])
    linear, strength = choose_linear(
        train_scaled, train[1], validation_scaled, validation[1], count
    )
    probabilities = {
        "knn": class_probabilities(knn, test[0], count),
        "linear": class_probabilities(linear, test_scaled, count),
    }
    results: dict[str, Any] = {"linear_C": strength, "num_neighbors": knn.n_neighbors}
    for name, values in probabilities.items():
        intervals = bootstrap_intervals(
            test[1],
            values,
            group_of["test"],
            num_resamples=arguments.num_resamples,
            seed=arguments.seed,
        )
        results[name] = {**classification_metrics(test[1], values), "intervals": intervals}
    records = few_shot_curve(
        train,
        validation,
        test,
        count,
        arguments.few_shot_percents,
        arguments.few_shot_repeats,
        arguments.seed,
        group_of["train"],
    )
    table = pd.DataFrame(records)
    table.to_csv(output / "few_shot.csv", index=False)
    majority = float(np.mean(test[1] == np.bincount(train[1]).argmax()))
    figures = output / "figures"
    figures.mkdir(exist_ok=True)
    plot_few_shot(
        *(table[name] for name in ("percent", "num_images", "accuracy", "roc_auc")),
        figures / "few_shot.png",
        majority,
        results["linear"]["intervals"] if table["percent"].max() == 100 else None,
    )
    used = np.flatnonzero(parts != "")
    points, axis_names = project(
        features[used], parts[used] == "train", arguments.projection, arguments.seed
    )
    splits = np.array([PARTS.index(part) for part in parts[used]])
    plot_embedding(
        points, labels[used], splits, class_names, PARTS, axis_names, figures / "embedding.png"
    )
    return {
        **results,
        "majority_accuracy": majority,
        "few_shot": summarize(records),
        "protocol": "fitted on train; the penalty's strength chosen by log loss on validation, for "
        "each few-shot subset anew; figures on test",
        "num_train_images": len(train[1]),
        "num_validation_images": len(validation[1]),
        "num_test_images": len(test[1]),
        "num_test_groups": None if groups is None else len(set(group_of["test"].tolist())),
        "labels": class_names,
        "positive_label": class_names[1] if len(class_names) == 2 else None,
    }


def show(results: dict[str, Any]) -> None:
    """The main figures, on the screen."""
    for name, title in (("knn", "k-NN"), ("linear", "linear probe")):
        for metric in ("accuracy", "roc_auc"):
            low, high = results[name]["intervals"][metric]
            print(
                f"{title:13s} {metric:9s} {results[name][metric]:.3f}  "
                f"(95 % interval {low:.3f} to {high:.3f})"
            )
    for row in results["few_shot"]:
        figures = []
        for metric in ("accuracy", "roc_auc"):
            spread = f" +- {row[f'{metric}_std']:.3f}" if row["repeats"] > 1 else ""
            figures.append(f"{metric} {row[f'{metric}_mean']:.3f}{spread}")
        images = f"({row['num_images_mean']:.0f} images)"
        print(f"{row['percent']:5g} % of the labels {images}: {', '.join(figures)}")


def main(argv: list[str] | None = None) -> int:
    from ..evaluation.embedding_plots import check_projection

    data, arguments = parse("embed", __doc__, argv)
    check_projection(arguments.projection)
    model = load_encoder(arguments)
    name, config = arguments.model_name_or_path, model.config
    size = as_pair(config.image_size)
    preparation = preparation_of(config, size, data)
    if preparation != preparation_of(config, size):
        logger.warning(
            "--window, --resize_mode or --slice_axis differ from those the model was trained with "
            f"({preparation_of(config, size).to_dict()})"
        )
    statistics = common.read_statistics(name, config.num_channels, arguments.model_revision)
    dataset = load_data(data, preparation.slice_axis)
    class_names = require_labels(dataset) if arguments.evaluate else []
    splits = find_splits(dataset, data, arguments)
    if arguments.evaluate:
        warn_of_seen_images(Path(name) / "splits.json", dataset, splits["test"])
        if data.group_column_name is None:
            logger.warning(
                "no --group_column_name: the intervals are too narrow if patients have several "
                "images"
            )
    wanted = arguments.parts_to_embed()
    if wanted is not None and not any(splits[part] for part in wanted):
        raise ValueError(
            f"--embed_splits {arguments.embed_splits}: there are no such images. Name the splits "
            "by --split_column, or leave the option out."
        )
    part_of = {row: part for part, rows in splits.items() for row in rows}
    rows = [row for row in range(len(dataset)) if wanted is None or part_of.get(row) in wanted]

    output = Path(arguments.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    for old in ("all_results.json", "bad_files.csv"):
        (output / old).unlink(missing_ok=True)
    common.save_run(output, "embed", (data, arguments), dataset, splits, data)
    images = decode_split(dataset, rows, preparation, data, title="images", output=output)
    start = time.perf_counter()
    features = embed_images(model, images, statistics, arguments)
    seconds = time.perf_counter() - start
    rows = images.rows.tolist()  # without the files left out by --skip_bad_files

    selected = dataset.select(rows)
    groups = groups_of(dataset, rows, data.group_column_name)
    labels = selected["label"][:] if "label" in dataset.column_names else None
    names = dataset.features["label"].names if labels is not None else []
    missing = [None] * len(rows)
    columns = {
        "file_name": selected["file_name"][:],
        "label": missing if labels is None else [names[i] for i in labels],
        "group": missing if groups is None else groups.tolist(),
        "split": [part_of.get(row) for row in rows],
    }
    description = describe(model, arguments, preparation, statistics)
    write_embeddings(output / "embeddings.parquet", columns, features, description)
    results = {
        "num_images": len(rows),
        "hidden_size": features.shape[1],
        "images_per_second": len(rows) / seconds,
        "num_images_of_splits": {part: columns["split"].count(part) for part in PARTS},
        "group_column_name": data.group_column_name,
        "split_column": data.split_column,
        "command": command_line("embed", argv),
        **description,
    }
    print(f"{len(rows)} images, {features.shape[1]} features each; written to {output}")
    if arguments.evaluate:
        parts = np.array([part_of.get(row, "") for row in rows])
        found = evaluate_features(
            features, np.array(labels), parts, groups, class_names, arguments, output
        )
        method = f"groups ({data.group_column_name})" if groups is not None else "images"
        found["interval_method"] = f"95 % percentile bootstrap of {method}"
        show(found)
        results |= found
    common.write_json(output / "all_results.json", to_json(results))
    return 0
