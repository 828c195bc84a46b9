"""What a checkpoint holds of a running training, and how a new process takes it up."""

import logging
from dataclasses import dataclass, field

import torch
from accelerate.utils import gather_object

from .checkpoints import gather, like, load_model, load_optimizer, optimizer_tensors

logger = logging.getLogger("sssd_hf")


@dataclass
class Progress:
    """What the loop itself knows of the past; plain values."""

    step: int = 0  # steps done
    seen: int = 0  # images
    seconds: float = 0.0  # of training, evaluation left out
    evaluating: float = 0.0
    unlogged: list[dict[str, float]] = field(default_factory=list)  # steps since the last line
    ended_early: bool = False
    epoch: float = 0.0
    evaluation_due: bool = False  # a signal came before its end: the resumed run makes up for it


def collect_state(
    accelerator, plain, optimizer, feed, stage, average, progress
) -> tuple[dict, dict]:
    """(tensors by group, plain values); put together by all processes."""
    stage_tensors, stage_values = stage.state()
    random = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    tensors = {
        "model": {k: gather(v) for k, v in plain.state_dict().items()},
        "optimizer": optimizer_tensors(plain, optimizer),
        "average": {k: gather(v) for k, v in average.values.items()} if average else {},
        "stage": stage_tensors,
        # of each process: attention dropout draws from torch's generators
        "random": {
            f"{place}/{kind}": state
            for place, states in enumerate(gather_object([random]))
            for kind, state in states.items()
        },
    }
    scaler = getattr(accelerator, "scaler", None)
    values = {
        "progress": vars(progress),
        "feed": gather_object([feed.state()]),  # one of each process
        "stage": stage_values,
        "scaler": scaler.state_dict() if scaler is not None else None,
        "global_batch": feed.global_batch,
    }
    return tensors, values


def restore_state(
    accelerator, plain, optimizer, feed, stage, average, options, tensors, values
) -> Progress:
    """Put a checkpoint's (tensors, values) in place.

    Raises:
        ValueError: it is of another global batch or another model.
    """
    if values["global_batch"] != feed.global_batch:
        raise ValueError(
            f"The run began with {values['global_batch']} images a step, here it is "
            f"{feed.global_batch} (--per_device_train_batch_size x --gradient_accumulation_steps x "
            "processes). Choose them so that the product is the same."
        )
    differing = {
        name: (old, options[name])
        for name, old in values["options"].items()
        if options and name in options and options[name] != old
    }
    if differing:
        shown = ", ".join(f"{k}: {old!r} -> {new!r}" for k, (old, new) in differing.items())
        logger.warning(
            f"the options differ from those the run began with ({shown}): what follows is not the "
            "run that was interrupted"
        )
    load_model(plain, tensors["model"])
    load_optimizer(plain, optimizer, tensors["optimizer"])
    if average:
        # of a run that began without one: the weights, an average from here on
        kept = {**tensors["model"], **tensors.get("average", {})}
        for name, value in average.values.items():
            value.copy_(like(kept[name], value))
    place = accelerator.process_index % len(values["feed"])
    random = tensors["random"]
    torch.set_rng_state(random[f"{place}/cpu"])
    if f"{place}/cuda" in random and accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(random[f"{place}/cuda"], accelerator.device)
    if values["scaler"] and getattr(accelerator, "scaler", None) is not None:
        accelerator.scaler.load_state_dict(values["scaler"])
    feed.load_state(values["feed"][place])
    stage.load_state(tensors.get("stage", {}), values["stage"])
    return Progress(**values["progress"])
