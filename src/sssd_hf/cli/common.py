"""What the scripts share: data to tensors, the accelerator, saving."""

import hashlib
import importlib.util
import json
import logging
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env, set_seed
from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from transformers.image_utils import IMAGENET_DEFAULT_STD as IMAGENET_STD
from transformers.utils import cached_file

from ..configuration_sssd import SSSDConfig, as_pair
from ..conversion_sssd import grey_statistics
from ..data.splits import write_splits
from ..hub.remote_code import save_with_code
from ..training.signals import EXIT_STATUS, Interrupted
from .arguments import DataArguments, TrainingArguments
from .locking import alone_in
from .parsing import as_dict
from .split_sources import rows_pretrained_on, split_source

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
        status = main()
        leave_processes()
        sys.exit(status)
    except (ValueError, OSError, FloatingPointError, StrictDataclassError) as error:
        logging.getLogger("sssd_hf").debug("", exc_info=True)
        sys.exit(f"error: {error}")
    except Interrupted as stop:
        print(f"\n{stop}", file=sys.stderr, flush=True)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            os._exit(EXIT_STATUS)  # all is saved, and gloo's threads may hold up a plain exit
        sys.exit(EXIT_STATUS)
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the result is not complete, what was written so far is kept")


def leave_processes() -> None:
    """Leave the group of processes in order: at a plain exit gloo's threads may still run, and the
    C++ library then aborts the process (seen about once in a hundred runs)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


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


def prepare_sharding(plugin: Any | None) -> None:
    """Set Accelerate's FSDP so that losses, the teacher's sums and gradients summed over processes
    are fp32 where the layers compute in half precision, as they are without FSDP.

    Raises:
        ValueError: what FSDP can't do with these models.
    """
    if plugin is None:
        return
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"fsdp_version: {plugin.fsdp_version} of the Accelerate configuration; expected 2."
        )
    if plugin.cpu_ram_efficient_loading:  # accelerate 1.15: fails on buffers, such as the teacher's
        raise ValueError(
            "fsdp_cpu_ram_efficient_loading: true of the Accelerate configuration; expected false: "
            "each process builds the whole model before it keeps its share."
        )
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )


def cpu_has_bf16() -> bool:
    """Whether oneDNN computes bf16 products on this processor. Where it does not, torch goes number
    by number: a step of a small model takes 7 s instead of 0.4 (EPYC with AVX2, torch 2.13)."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def make_accelerator(precision: str | None, **others: Any) -> Accelerator:
    """An Accelerator of this precision, whatever an earlier one of this process had (its state is
    shared). None: accelerate launch's, or else bf16 on a GPU that has it. bf16 on a processor
    without it is fp32, with a warning.

    Args:
        others: What `accelerate.Accelerator` takes.
    """
    AcceleratorState._reset_state()
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    precision = precision or os.environ.get("ACCELERATE_MIXED_PRECISION")
    on_gpu = state.device.type == "cuda"
    if precision is None and on_gpu and torch.cuda.is_bf16_supported(including_emulation=False):
        precision = "bf16"
    if precision == "bf16" and state.device.type == "cpu" and not cpu_has_bf16():
        if state.is_main_process:
            logger.warning(
                "bf16 was asked for, but this processor has no fast bf16: computing in fp32, which "
                "is faster here and no less exact"
            )
        precision = "no"
    return Accelerator(mixed_precision=precision, **others)


def holds(folder: Path, source: str) -> bool:
    """Whether `source` is a file or folder in `folder`, or that itself."""
    return Path(source).exists() and Path(source).resolve().is_relative_to(folder.resolve())


@contextmanager
def started(training: TrainingArguments, start: str | None) -> Iterator[Accelerator | None]:
    """The accelerator, seeded, with its output folder, which no other run may use meanwhile; None
    where the run to resume has ended. `start`: the checkpoint that the training begins with.

    Raises:
        ValueError: options that do not go together, or with what the folder holds.
    """
    if training.resume_from_checkpoint and training.overwrite_output_dir:
        raise ValueError("Give --resume_from_checkpoint or --overwrite_output_dir, not both.")
    if start and holds(Path(training.output_dir), start):
        raise ValueError(
            f"--output_dir {training.output_dir} holds --model_name_or_path {start}, which would "
            "be overwritten: name another --output_dir."
        )
    trackers = trackers_of(training.report_to)
    accelerator = make_accelerator(
        training.mixed_precision, log_with=trackers or None, project_dir=training.output_dir
    )
    prepare_sharding(getattr(accelerator.state, "fsdp_plugin", None))
    set_seed(training.seed)
    if not accelerator.is_main_process:
        logging.getLogger("sssd_hf").setLevel(logging.ERROR)  # each message once
    with alone_in(Path(training.output_dir), accelerator):
        yield accelerator if prepare_output(training, accelerator) else None


def prepare_output(training: TrainingArguments, accelerator: Accelerator) -> bool:
    """Make the output folder ready; False where it holds the run to resume, and that has ended.

    Raises:
        ValueError: it holds a run, and the options do not say what to do with that.
    """
    output, resume = Path(training.output_dir), training.resume_from_checkpoint
    if (output / "all_results.json").exists() and not training.overwrite_output_dir:
        if resume:
            logger.info(f"--output_dir {output} holds the finished run: nothing is left to do")
            return False
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
        gone = ["all_results.json", "bad_files.csv"]  # the former marks a finished run
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
            gone.append("metrics.jsonl")
        if training.overwrite_output_dir:
            # else the earlier model would lie beside the splits of this run, and be tested on them
            gone += ["config.json", "splits.json", "preprocessor_config.json"]
            gone += [path.name for path in output.glob("model*.safetensors*")]
        for name in gone:
            (output / name).unlink(missing_ok=True)
        logger.info(
            f"{accelerator.num_processes} process(es) on {accelerator.device.type}, "
            f"precision {accelerator.mixed_precision}, torch threads {torch.get_num_threads()}"
        )
    accelerator.wait_for_everyone()
    return True


def check_checkpoint(name: str | None, option: str = "--model_name_or_path") -> None:
    """Raises ValueError for a folder that is no checkpoint; names on the Hub are not looked up."""
    if name and Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise ValueError(
            f"{option} {name}: there is no config.json; expected the folder of a "
            "checkpoint (of a training that has ended)."
        )


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


def processor_fields(
    config: SSSDConfig, statistics: tuple[list[float], list[float]]
) -> dict[str, Any]:
    """preprocessor_config.json of a model: the `ViTImageProcessor` that prepares its images."""
    height, width = as_pair(config.image_size)
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": statistics[0],
        "image_std": statistics[1],
    }


def save_checkpoint(
    model: torch.nn.Module, folder: Path, statistics: tuple[list[float], list[float]]
) -> None:
    """Weights, config, the model's code, and the `ViTImageProcessor` that prepares its images. A
    one-channel model's processor repeats its one mean and spread, since pipelines feed RGB."""
    save_with_code(model, folder)
    write_json(folder / "preprocessor_config.json", processor_fields(model.config, statistics))


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
    options = as_dict(*arguments)
    seed, start = options["seed"], options["model_name_or_path"]
    how = {
        "source": split_source(dataset, splits, data, seed, output, start),
        "split_column": data.split_column,
        "group_column_name": data.group_column_name,
    }
    pretrained_on = rows_pretrained_on(start, dataset, splits.get("test", []))
    write_splits(output / "splits.json", dataset, splits, how, pretrained_on)


def digest_of(file_names: list[str]) -> str:
    """The same for the same file names in any order: 16 hexadecimal digits."""
    text = "\n".join(sorted(file_names)).encode("utf-8", errors="surrogateescape")
    return hashlib.sha256(text).hexdigest()[:16]


def hardware(accelerator: Accelerator) -> dict[str, Any]:
    """What a run ran on: the kind and name of its device, processes, threads of each, and the
    precision it computed in, which may be another than was asked for."""
    kind = accelerator.device.type
    if kind == "cuda":
        name = torch.cuda.get_device_name(accelerator.device)
    else:
        facts = Path("/proc/cpuinfo")
        text = facts.read_text() if kind == "cpu" and facts.is_file() else ""
        named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
        name = named[1] if named else platform.machine()
        if kind == "cpu":  # of one name there are fast and slow ones
            name += f" ({torch.backends.cpu.get_cpu_capability()})"
    return {
        "device": kind,
        "name": name,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "precision": accelerator.mixed_precision,
    }


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
