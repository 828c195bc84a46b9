"""What the scripts share: data to tensors, the accelerator, saving."""

import importlib.util
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from transformers.image_utils import IMAGENET_DEFAULT_STD as IMAGENET_STD
from transformers.utils import cached_file

from ..configuration_sssd import SSSDConfig
from ..conversion_sssd import grey_statistics
from ..data.cache import Images, decode_once
from ..data.preparation import Preparation
from ..data.sources import column_texts, image_sources, load_images
from ..data.splits import check_splits, make_splits, read_splits, write_splits
from ..data.streams import ImageStream, open_stream
from ..data.windows import parse_windows
from ..hub.remote_code import save_with_code
from ..training.seeding import epoch_order
from ..training.signals import EXIT_STATUS, Interrupted
from .arguments import DataArguments, TrainingArguments, as_dict

logger = logging.getLogger("sssd_hf")
PIXEL_MEAN, PIXEL_STD = 0.5, 0.5  # of new models, ViTImageProcessor's defaults


def run_script(main) -> None:
    """Run a script's `main`; an error the user can mend is shown without a traceback."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    for noisy in ("httpx", "datasets", "fsspec", "PIL", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of reading and writing weights; the scripts show their own
    try:
        sys.exit(main())
    except (ValueError, OSError, FloatingPointError, StrictDataclassError) as error:
        logging.getLogger("sssd_hf").debug("", exc_info=True)
        sys.exit(f"error: {error}")
    except Interrupted as stop:
        print(f"\n{stop}", file=sys.stderr)
        sys.exit(EXIT_STATUS)
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the result is not complete, what was written so far is kept")


TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")


def trackers_of(report_to: str) -> list[str]:
    """The trackers that --report_to names.

    Raises:
        ValueError: an unknown one, or one whose package is not installed.
    """
    names = [name.strip() for name in report_to.split(",")]
    if names == ["none"]:
        return []
    for name in names:
        if name not in TRACKERS:
            raise ValueError(
                f"--report_to {report_to}: {name!r} is unknown; expected none, or of "
                f"{', '.join(TRACKERS)} one or several by comma."
            )
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"--report_to {name}: the package is not installed: pip install {name}"
            )
    return names


def start(training: TrainingArguments) -> Accelerator | None:
    """The accelerator, seeded, with its output folder; None where the run to resume has ended."""
    precision = training.mixed_precision
    chosen = precision or os.environ.get("ACCELERATE_MIXED_PRECISION")  # accelerate launch's
    if chosen is None and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        precision = "bf16"
    output, resume = Path(training.output_dir), training.resume_from_checkpoint
    if resume and training.overwrite_output_dir:
        raise ValueError("Give --resume_from_checkpoint or --overwrite_output_dir, not both.")
    trackers = trackers_of(training.report_to)
    accelerator = Accelerator(
        mixed_precision=precision, log_with=trackers or None, project_dir=output
    )
    set_seed(training.seed)
    if not accelerator.is_main_process:
        logging.getLogger("sssd_hf").setLevel(logging.ERROR)  # each message once
    if (output / "all_results.json").exists() and not training.overwrite_output_dir:
        if resume:
            logger.info(f"--output_dir {output} holds the finished run: nothing is left to do")
            return None
        raise ValueError(
            f"--output_dir {output} holds a finished run. Name another folder, or pass "
            "--overwrite_output_dir true."
        )
    folder = output / "checkpoints"
    if folder.is_dir() and not resume and not training.overwrite_output_dir:
        raise ValueError(
            f"--output_dir {output} holds checkpoints of a run that did not end. Pass "
            "--resume_from_checkpoint latest to go on, or --overwrite_output_dir true to start "
            "anew."
        )
    accelerator.wait_for_everyone()  # before the main process changes what the others look at
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        for name in ("all_results.json", "bad_files.csv"):  # the former marks a finished run
            (output / name).unlink(missing_ok=True)
        if not resume:
            (output / "metrics.jsonl").unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
        logger.info(
            f"{accelerator.num_processes} process(es) on {accelerator.device.type}, "
            f"precision {accelerator.mixed_precision}, torch threads {torch.get_num_threads()}"
        )
    accelerator.wait_for_everyone()
    return accelerator


def check_checkpoint(name: str | None) -> None:
    """Raises ValueError for a folder that is no checkpoint; names on the Hub are not looked up."""
    if name and Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise ValueError(
            f"--model_name_or_path {name}: there is no config.json; expected the folder of a "
            "checkpoint (of a training that has ended)."
        )


def preparation_of(
    config: Any, size: tuple[int, int], data: DataArguments | None = None
) -> Preparation:
    """How images are prepared for a model: as its config's `preparation` says, options of `data`
    that are given before it, and the defaults where neither says.

    Args:
        config: with num_channels, and `preparation` (`Preparation.to_dict`) where it has one.
        size: (height, width).

    Raises:
        ValueError: impossible values, such as two windows for a one-channel model.
    """
    values = dict(getattr(config, "preparation", None) or {})
    if data is not None:
        given = {
            "windows": data.window and parse_windows(data.window),
            "resize_mode": data.resize_mode,
            "slice_axis": data.slice_axis,
        }
        values |= {name: value for name, value in given.items() if value is not None}
    return Preparation.from_dict(values, size, config.num_channels)


def load_data(data: DataArguments, slice_axis: str | None = None) -> Any:
    """The `datasets.Dataset` that the data options name; `slice_axis` is the checkpoint's."""
    if data.streaming:
        raise ValueError("--streaming: this script needs all images at hand; leave it out.")
    return load_images(
        data.data_dir,
        data.dataset_name,
        dataset_config_name=data.dataset_config_name,
        image_column_name=data.image_column_name,
        label_column_name=data.label_column_name or None,
        group_column_name=data.group_column_name,
        dataset_revision=data.dataset_revision,
        cache_dir=data.cache_dir,
        slice_axis=data.slice_axis or slice_axis or "axial",
    )


def load_stream(
    data: DataArguments, preparation: Preparation, seed: int, accelerator: Accelerator | None
) -> ImageStream:
    """This process's share (without an accelerator: all) of the stream that the options name."""
    dataset = open_stream(
        data.data_dir,
        data.dataset_name,
        dataset_config_name=data.dataset_config_name,
        dataset_revision=data.dataset_revision,
        cache_dir=data.cache_dir,
        split=data.train_split,
        image_column_name=data.image_column_name,
        label_column_name=data.label_column_name or None,
    )
    return ImageStream(
        dataset,
        preparation,
        seed=seed,
        buffer_size=data.shuffle_buffer_size,
        rank=accelerator.process_index if accelerator else 0,
        world=accelerator.num_processes if accelerator else 1,
        skip_bad_files=data.skip_bad_files,
    )


def hold_out(data: DataArguments, preparation: Preparation, count: int = 1000) -> Images | None:
    """The first `count` images of --validation_split, where a stream has one."""
    if data.validation_split is None or data.data_dir is not None:
        return None
    alone = replace(data, train_split=data.validation_split, shuffle_buffer_size=1)
    stream = load_stream(alone, preparation, 0, None)
    batches = []
    while sum(len(batch.positions) for batch in batches) < count:
        batches.append(stream.read(1))
        if batches[-1].epochs.any():  # the split has ended and begins anew
            batches.pop()
            break
    stream.close()
    labels = None
    if batches[0].labels is not None:
        labels = torch.cat([batch.labels for batch in batches])
    positions = torch.cat([batch.positions for batch in batches])
    return Images(positions, labels, torch.cat([batch.pixels for batch in batches]))


def split_data(
    dataset: Any, data: DataArguments, seed: int, own: str | None, earlier: str | None = None
) -> dict[str, list[int]]:
    """Rows of each split: from the split column; else those of `splits.json` in the folder `own`;
    else those of the folder `earlier`, if they serve here; else cut now."""
    # a column of one value, as of a data set on the Hub that has "train" only, splits nothing
    named = "split" in dataset.column_names and len(set(dataset["split"][:])) > 1
    if data.split_column is None and not named:
        for folder in filter(None, (own, earlier)):
            path = Path(folder) / "splits.json"
            if not path.is_file():
                continue
            try:
                splits = read_splits(path, dataset)
                check_splits(dataset, splits, data.group_column_name)
                if folder != own:
                    _check_usable(dataset, splits, data)
            except ValueError as error:
                if folder == own:
                    raise
                logger.warning(f"not taking the splits of {path}, but cutting anew: {error}")
                continue
            logger.info(f"splits are those of {path}")
            return splits
    return make_splits(
        dataset,
        split_column=data.split_column,
        train_split=data.train_split,
        validation_split=data.validation_split,
        test_split=data.test_split,
        train_val_split=data.train_val_split,
        train_test_split=data.train_test_split if "label" in dataset.column_names else 0.0,
        group_column_name=data.group_column_name,
        seed=seed,
    )


def _check_usable(dataset: Any, splits: dict[str, list[int]], data: DataArguments) -> None:
    if data.train_test_split and not splits["test"]:
        raise ValueError("they have no test split")
    if data.group_column_name is not None:
        groups = [
            {*column_texts(dataset.select(rows), data.group_column_name, "--group_column_name")}
            for rows in splits.values()
            if rows
        ]
        if sum(map(len, groups)) > len(set().union(*groups)):
            raise ValueError(f"they separate images of the same {data.group_column_name}")


def choose_rows(rows: list[int], count: int | None, seed: int) -> list[int]:
    """`count` of `rows` by chance (class folders lie one after the other), in their order."""
    if count is None or count >= len(rows):
        return rows
    return [rows[i] for i in sorted(epoch_order(seed, 0, len(rows))[:count].tolist())]


def working_size(size: tuple[int, int], cache_size: int | None) -> tuple[int, int]:
    """(height, width) that random crops are taken from, in the proportions of the model's `size`;
    `cache_size` is the shorter side. By default 1.25 times the model's: a crop of half the area
    still shows 0.88 of the model's pixels."""
    factor = 1.25 if cache_size is None else cache_size / min(size)
    return round(size[0] * factor), round(size[1] * factor)


def decode_split(
    dataset: Any,
    rows: list[int],
    preparation: Preparation,
    data: DataArguments | None = None,
    accelerator: Accelerator | None = None,
    title: str = "images",
    output: Path | None = None,
) -> Images:
    """Decode the images of `rows` once, at one size. Images left out by --skip_bad_files are in
    neither `rows` nor `labels` of the result; `output` is where bad_files.csv goes."""
    part = dataset.select(rows)
    data = data or DataArguments()
    main = accelerator is None or accelerator.is_main_process
    images = decode_once(
        # a Hub's are read row by row: embedded images need not all be in memory
        part["image"] if data.dataset_name else image_sources(part),
        preparation,
        rows,
        part["label"][:] if "label" in part.column_names else None,
        cache=data.cache,
        device=accelerator.device if accelerator else "cpu",
        title=title,
        names=part["file_name"],
        skip_bad_files=data.skip_bad_files,
        bad_files=output / "bad_files.csv" if output and main else None,
        local_processes=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        progress=main,
    )
    if data.skip_bad_files and accelerator is not None and accelerator.num_processes > 1:
        # a file that one process alone could not read would set their batches against each other
        count = torch.full_like(images.rows[:1], len(images))
        marks = accelerator.gather(torch.stack([count, images.rows.pow(2).sum()[None]], dim=1))
        if (marks != marks[0]).any():
            raise ValueError(
                f"--skip_bad_files: the processes could read different numbers of {title} "
                f"({', '.join(map(str, marks[:, 1].tolist()))}): start again, and if it stays so "
                "remove the files named in bad_files.csv"
            )
    return images


@lru_cache
def _on_device(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """(1, channels, 1, 1); copied to the device once, since each copy makes the host wait."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def normalize(pixels: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """0 to 255 (uint8 or float) -> (x / 255 - mean) / std, fp32, as `ViTImageProcessor`."""
    channels = pixels.shape[1]
    mean_tensor = _on_device(tuple(mean[:channels]), pixels.device)
    std_tensor = _on_device(tuple(std[:channels]), pixels.device)
    return (pixels.float() / 255 - mean_tensor) / std_tensor


def rank_batches(
    count: int, batch_size: int, accelerator: Accelerator | None
) -> Iterator[tuple[torch.Tensor, bool]]:
    """(indices, whether they count) of this process's batches. Each process has as many, so that
    all meet in the reductions of a sharded model; those in excess do not count."""
    processes = accelerator.num_processes if accelerator else 1
    rank = accelerator.process_index if accelerator else 0
    batches = torch.arange(count).split(batch_size)
    for turn in range(math.ceil(len(batches) / processes)):
        place = turn * processes + rank
        yield batches[min(place, len(batches) - 1)], place < len(batches)


@torch.no_grad()
def map_images(
    function: Callable[[torch.Tensor], torch.Tensor],
    width: int,
    images: Images,
    statistics: tuple[list[float], list[float]],
    batch_size: int,
    device: torch.device,
    accelerator: Accelerator | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """(images, width) fp64: `function` of normalised images, with the evaluation transform; the
    processes share the work and all get the whole. Images of another size than `size` are resized
    to it."""
    result = torch.zeros(len(images), width, device=device)
    for index, real in rank_batches(len(images), batch_size, accelerator):
        pixels = images.batch(index, device)
        if size not in (None, pixels.shape[2:]):
            pixels = F.interpolate(pixels.float(), size, mode="bilinear", antialias=True)
        values = function(normalize(pixels, *statistics)).float()
        if real:
            result[index] = values
    if accelerator and accelerator.num_processes > 1:
        result = accelerator.reduce(result, "sum")
    return result.double().cpu().numpy()


def predict_probabilities(
    model: torch.nn.Module,
    images: Images,
    statistics: tuple[list[float], list[float]],
    batch_size: int,
    accelerator: Accelerator | None = None,
) -> np.ndarray:
    """(images, classes) fp64 probabilities; see `map_images`."""
    return map_images(
        lambda pixel_values: model(pixel_values=pixel_values).logits.float().softmax(-1),
        model.config.num_labels,
        images,
        statistics,
        batch_size,
        next(model.parameters()).device,
        accelerator,
    )


def patch_features(
    model: torch.nn.Module,
    images: Images,
    statistics: tuple[list[float], list[float]],
    batch_size: int,
    accelerator: Accelerator | None = None,
) -> np.ndarray:
    """(images, hidden_size) fp64: the mean of the encoder's patch tokens, all patches seen."""
    grid, patch = model.config.grid_size, model.encoder.embeddings.patch
    return map_images(
        lambda pixel_values: model.encoder(pixel_values).last_hidden_state[:, 1:].mean(1),
        model.config.hidden_size,
        images,
        statistics,
        batch_size,
        next(model.parameters()).device,
        accelerator,
        size=(grid[0] * patch[0], grid[1] * patch[1]),
    )


def groups_of(dataset: Any, rows: list[int], column: str | None) -> np.ndarray | None:
    if column is None:
        return None
    return np.array(column_texts(dataset.select(rows), column, "--group_column_name"))


def read_statistics(
    checkpoint: str | None, num_channels: int, revision: str = "main"
) -> tuple[list[float], list[float]]:
    """(mean, std), three values each, that the images of a checkpoint are normalised with; those of
    new models without one. A one-channel model has one of each, repeated."""
    if checkpoint is None:
        return [PIXEL_MEAN] * 3, [PIXEL_STD] * 3
    mean, std = IMAGENET_MEAN, IMAGENET_STD  # MAE's, where the checkpoint does not tell
    if not checkpoint.endswith(".pth"):
        name = "preprocessor_config.json"
        path = cached_file(
            checkpoint, name, revision=revision, _raise_exceptions_for_missing_entries=False
        )
        processor = json.loads(Path(path).read_text()) if path else {}
        if "image_mean" in processor and "image_std" in processor:
            mean, std = processor["image_mean"], processor["image_std"]
        elif (
            PretrainedConfig.get_config_dict(checkpoint, revision=revision)[0].get("model_type")
            == SSSDConfig.model_type
        ):
            mean, std = [PIXEL_MEAN] * 3, [PIXEL_STD] * 3
    if num_channels == 1:
        grey_mean, grey_std = grey_statistics(mean, std)
        mean, std = [grey_mean] * 3, [grey_std] * 3
    return mean, std


def write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    temporary.replace(path)


def save_checkpoint(
    model: torch.nn.Module, folder: Path, statistics: tuple[list[float], list[float]]
) -> None:
    """Weights, config, the model's code, and the `ViTImageProcessor` that prepares its images. A
    one-channel model's processor repeats its one mean and spread, since pipelines feed RGB."""
    save_with_code(model, folder)
    size = model.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": height, "width": width},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": statistics[0],
            "image_std": statistics[1],
        },
    )


def save_run(
    output: Path,
    script: str,
    arguments: tuple,
    dataset: Any | None,
    splits: dict,
    data: DataArguments,
) -> None:
    """The resolved options as a recipe, and who is in which split."""
    (output / f"{script}_recipe.yaml").write_text(
        yaml.safe_dump({script: as_dict(*arguments)}, sort_keys=False)
    )
    if dataset is None:  # a stream
        return
    how = {"split_column": data.split_column, "group_column_name": data.group_column_name}
    write_splits(output / "splits.json", dataset, splits, how)


def versions() -> dict[str, str]:
    import accelerate
    import transformers

    from .. import __version__

    return {
        "sssd_hf": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
