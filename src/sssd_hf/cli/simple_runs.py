"""What a study's models are compared with, on the same splits: simple classifiers that see
thumbnails or file facts, and a ResNet-18 from random weights with the same augmentation."""

import time
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from scipy.special import softmax
from torch import nn

from ..data.audit import inspect_images
from ..data.preparation import Preparation
from ..data.sources import image_sources, require_labels
from ..evaluation.baselines import thumbnail_scores
from ..evaluation.shortcuts import file_features
from ..training.log import Log
from ..training.loop import Stage, train
from ..training.optimization import cosine_with_warmup
from .batches import Batches, augmentation_of, normalize
from .common import hardware, make_accelerator, read_statistics, versions
from .data import decode_split, groups_of, load_data, split_data
from .parsing import as_dict, parse
from .runs import loop_settings, open_images, peak_learning_rate, warmup_steps

Splits = dict[str, list[int]]
# options of finetune.py that change what a step learns from, by the value that leaves it
NOT_FOR_RESNET = {
    "class_weights": "none",
    "balanced_sampling": False,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
}


def by_thumbnails(kind: str, dataset: Any, splits: Splits) -> np.ndarray:
    """(test images, classes) shares: the softmax of `thumbnail_scores`."""
    train, test = (
        decode_split(dataset, splits[part], Preparation((64, 64)), title=f"{part} images")
        for part in ("train", "test")
    )
    shares = softmax(thumbnail_scores(train.pixels, train.labels, test.pixels)[kind], axis=1)
    return _of_all_classes(shares, train.labels, dataset)


def _of_all_classes(shares: np.ndarray, labels: Any, dataset: Any) -> np.ndarray:
    """(images, classes of the data) from (images, classes of the training `labels`)."""
    whole = np.zeros((len(shares), len(require_labels(dataset))))
    whole[:, np.unique(labels)] = shares
    return whole


def by_file_facts(dataset: Any, splits: Splits) -> np.ndarray:
    """(test images, classes) shares by a random forest on `file_features`, pictures unseen.

    Raises:
        ValueError: images that cannot be read.
    """
    from sklearn.ensemble import RandomForestClassifier

    found = inspect_images(image_sources(dataset.select([*splits["train"], *splits["test"]])))
    if found.errors:
        raise ValueError(f"{next(iter(found.errors.values()))} See scripts/audit.py.")
    features, count = file_features(found.facts)[0], len(splits["train"])
    forest = RandomForestClassifier(200, min_samples_leaf=3, random_state=0)
    labels = dataset.select(splits["train"])["label"][:]
    forest.fit(features[:count], labels)
    return _of_all_classes(forest.predict_proba(features[count:]), labels, dataset)


class ResNet18(nn.Module):
    """transformers' ResNet of 18 layers, with the loss and the arguments of fine-tuning."""

    def __init__(self, num_channels: int, num_classes: int, label_smoothing: float):
        from transformers import ResNetConfig, ResNetForImageClassification

        super().__init__()
        config = ResNetConfig(
            num_channels=num_channels,
            hidden_sizes=[64, 128, 256, 512],
            depths=[2, 2, 2, 2],
            layer_type="basic",
            num_labels=num_classes,
        )
        self.network = ResNetForImageClassification(config)
        self.label_smoothing = label_smoothing

    def forward(self, pixel_values, labels=None, sample_seeds=None):
        output = self.network(pixel_values)
        if labels is not None:
            logits, smoothing = output.logits.float(), self.label_smoothing
            output.loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        return output


def by_resnet(
    dataset: Any, splits: Splits, arguments: tuple, accelerator: Accelerator
) -> np.ndarray:
    """(test images, classes) shares of a ResNet-18 trained as the options of finetune.py say, all
    layers at one rate; with the last weights, for an average of them would not fit the averages of
    batch normalisation. A run of minutes: it keeps no checkpoints."""
    data, options, augmentation, training = arguments
    asked = as_dict(*arguments)
    for name, off in NOT_FOR_RESNET.items():
        if asked[name] != off:
            raise ValueError(f"baseline resnet18: --{name} is not for it; leave it out.")
    set_seed(training.seed)
    device = accelerator.device
    size, channels = (options.image_size or 112,) * 2, options.num_channels or 1
    preparation, statistics = Preparation(size, channels), read_statistics(None, channels)
    names = dataset.features["label"].names
    model = ResNet18(channels, len(names), training.label_smoothing)
    images, _, feed = open_images(
        dataset, splits, splits["train"], preparation, data, training, accelerator
    )
    settings = loop_settings(training, feed.steps_per_epoch)
    augment = augmentation_of(augmentation)
    batches = Batches(images, size, training.seed, augment, statistics, device)
    groups = [
        {
            "params": [p for p in model.parameters() if (p.ndim > 1) == weights],
            "weight_decay": training.weight_decay * weights,
        }
        for weights in (True, False)
    ]
    rate = peak_learning_rate(training, feed.global_batch, default=5e-4)
    wrapped, optimizer = accelerator.prepare(model, torch.optim.AdamW(groups, lr=rate, fused=True))
    stage = Stage(
        make_batch=batches.augmented,
        batch_weight=lambda batch: torch.tensor(float(len(batch["labels"])), device=device),
        log_values=lambda output: {},
        after_step=lambda step, sums: {},
        evaluate=lambda step, heed_signals: {},
    )
    warmup = warmup_steps(training, settings, feed.steps_per_epoch)
    schedule = partial(cosine_with_warmup, warmup_steps=warmup, total_steps=settings.total_steps)
    train(accelerator, wrapped, optimizer, schedule, feed, stage, settings, Log(None))
    model.eval()
    test = decode_split(dataset, splits["test"], preparation, data, accelerator, "test images")
    logits = []
    with torch.no_grad():
        for index in torch.arange(len(test)).split(training.per_device_eval_batch_size):
            pixels = normalize(test.batch(index, device), *statistics)
            logits.append(model(pixels).logits.float())
    return torch.cat(logits).double().softmax(-1).cpu().numpy()


KINDS = {
    "ridge": lambda dataset, splits, *_: by_thumbnails("ridge", dataset, splits),
    "nearest_neighbor": lambda dataset, splits, *_: by_thumbnails(
        "nearest_neighbor", dataset, splits
    ),
    "file_facts": lambda dataset, splits, *_: by_file_facts(dataset, splits),
    "resnet18": by_resnet,
}


def run_simple(kind: str, words: list[str], split_seed: int = 0) -> dict[str, Any]:
    """Train one of `KINDS` on the training split and judge the test split.

    Args:
        words: options of finetune.py: which images and splits, and a ResNet's training.
        split_seed: of what is cut off for validation.

    Returns:
        "versions", "hardware", "num_train_images", "minutes" ({"baseline": how many}), "labels"
        (names), and of each test image "images" (file names), "groups" (or None), "truth",
        "probabilities" (images, classes).

    Raises:
        ValueError: images without labels, or a split without test images.
    """
    arguments = parse("finetune", "", words)
    data, training = arguments[0], arguments[-1]
    dataset = load_data(data)
    names = require_labels(dataset)
    # validation is cut as cross_validate.py cuts it for the models of a study, whatever the seed
    splits = split_data(dataset, data, split_seed, None)
    if not splits["test"]:
        raise ValueError(f"--split_column {data.split_column}: has no test images.")
    began = time.monotonic()
    accelerator = make_accelerator(training.mixed_precision)
    shares = KINDS[kind](dataset, splits, arguments, accelerator)
    minutes = (time.monotonic() - began) / 60
    test = dataset.select(splits["test"])
    groups = groups_of(dataset, splits["test"], data.group_column_name)
    return {
        "versions": versions(),
        "hardware": hardware(accelerator),
        "num_train_images": len(splits["train"]),
        "minutes": {"baseline": round(minutes, 2)},
        "labels": names,
        "images": test["file_name"][:],
        "groups": None if groups is None else groups.tolist(),
        "truth": test["label"][:],
        "probabilities": shares,
    }
