"""Figures of a whole protocol: folds pooled, draws of splits summarised, two protocols compared.

A draw is a split of the data into training and test images, and the predictions of a model trained
on it. Two kinds of protocol are kept apart:

- the folds of a cross-validation share no test image: their predictions are pooled, so that each
  image counts once, and the interval is the bootstrap of groups (patients);
- other draws share test images: they are not pooled, as if one image in five draws were five. Their
  values are summarised, with the interval of the mean of Nadeau and Bengio (2003), which knows that
  the training images overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sssd_hf.evaluation.comparison import bootstrap_p_value, corrected_resampled_t_test
from sssd_hf.evaluation.intervals import bootstrap_samples, percentile_interval
from sssd_hf.evaluation.metrics import classification_metrics

BOUNDS = {"mcc": (-1, 1), "cohen_kappa": (-1, 1), "log_loss": (0, np.inf), "brier": (0, 2)}


@dataclass(frozen=True)
class Draw:
    """Predictions of one model for the images it was tested on.

    Args:
        split: name of the split; draws of it differ by `seed` alone and share their test images.
        repeat: splits of one repeat share no test image (the folds of one cross-validation).
        file_names: [N], labels: [N] integers, probabilities: [N, K], groups: [N] ids or None.
        num_train: images learned from, those that the checkpoint was chosen on included.
        decided: [N] classes decided for by the model's own threshold; None: the most probable.
    """

    split: str
    repeat: int
    seed: int
    file_names: Sequence[str]
    labels: np.ndarray
    probabilities: np.ndarray
    groups: np.ndarray | None
    num_train: int
    decided: np.ndarray | None = None

    def decisions(self) -> np.ndarray:
        """[N, K]: 1 for the class decided for, else 0."""
        num_classes = self.probabilities.shape[1]
        decided = self.probabilities.argmax(axis=1) if self.decided is None else self.decided
        return np.eye(num_classes)[decided]


def pool(draws: list[Draw]) -> list[Draw]:
    """One draw for each repeat and seed: the predictions of all its splits, by file name.

    Raises:
        ValueError: an image is tested twice in a repeat, or repeats are of different images, as
            after a run in which a file could not be read.
    """
    pooled = []
    for repeat, seed in sorted({(draw.repeat, draw.seed) for draw in draws}):
        parts = [draw for draw in draws if (draw.repeat, draw.seed) == (repeat, seed)]
        names = [name for part in parts for name in part.file_names]
        order = sorted(range(len(names)), key=names.__getitem__)
        if len(set(names)) < len(names):
            twice = next(a for a, b in zip(sorted(names), sorted(names)[1:]) if a == b)
            raise ValueError(f"the image {twice} is tested more than once in a repeat")

        def together(values, order=order):
            return None if any(v is None for v in values) else np.concatenate(values)[order]

        pooled.append(
            Draw(
                split="pooled",
                repeat=repeat,
                seed=seed,
                file_names=[names[i] for i in order],
                labels=together([part.labels for part in parts]),
                probabilities=together([part.probabilities for part in parts]),
                groups=together([part.groups for part in parts]),
                num_train=round(np.mean([part.num_train for part in parts])),
                decided=together([part.decided for part in parts]),
            )
        )
    first = pooled[0]
    for other in pooled[1:]:
        if other.file_names != first.file_names or (other.labels != first.labels).any():
            only = set(first.file_names) ^ set(other.file_names)
            raise ValueError(
                f"repeats {first.repeat} and {other.repeat} (seeds {first.seed} and {other.seed}) "
                f"tested different images or labels, such as {min(only, default='other labels')}; "
                "run all of them on the same data"
            )
    return pooled


def pooled_results(pooled: list[Draw], *, num_resamples=2000, confidence=0.95, seed=0) -> dict:
    """Metrics of `pool`'s draws: the means over repeats and seeds, and each one's own.

    Returns "metrics" and "intervals" (of the means: all repeats and seeds are evaluated on the same
    draws of whole groups, so that the interval is of which patients were tested, and not of how
    trainings differ), "each" with repeat, seed, metrics and intervals; "decisions" the same of the
    classes decided for by each model's own threshold, None where there are none.
    """
    options = {"num_resamples": num_resamples, "confidence": confidence, "seed": seed}
    result = _pooled(pooled, [draw.probabilities for draw in pooled], options)
    result["decisions"] = None
    if all(draw.decided is not None for draw in pooled):
        decisions = _pooled(pooled, [draw.decisions() for draw in pooled], options)
        for part in (decisions["metrics"], decisions["intervals"]):
            for name in ("roc_auc", "average_precision", "log_loss", "brier", "ece"):
                part.pop(name, None)  # decided classes have no order and no confidence
        result["decisions"] = {name: decisions[name] for name in ("metrics", "intervals")}
    return result


def _pooled(pooled, probabilities, options):
    labels, groups = pooled[0].labels, pooled[0].groups
    confidence = options["confidence"]
    values = [classification_metrics(labels, part) for part in probabilities]
    samples = bootstrap_samples(
        labels, probabilities, groups, num_resamples=options["num_resamples"], seed=options["seed"]
    )
    return {
        "metrics": {name: float(np.mean([each[name] for each in values])) for name in values[0]},
        "intervals": {
            name: percentile_interval(np.mean([each[name] for each in samples], axis=0), confidence)
            for name in samples[0]
        },
        "each": [
            {
                "repeat": draw.repeat,
                "seed": draw.seed,
                "metrics": metrics,
                "intervals": {n: percentile_interval(v, confidence) for n, v in sample.items()},
            }
            for draw, metrics, sample in zip(pooled, values, samples, strict=True)
        ],
    }


def values_by_split(draws: list[Draw]) -> dict[str, dict[str, float]]:
    """split -> metric -> mean over its seeds, in the order of the draws."""
    found: dict[str, list[dict[str, float]]] = {}
    for draw in draws:
        values = classification_metrics(draw.labels, draw.probabilities)
        found.setdefault(draw.split, []).append(values)
    return {
        split: {name: float(np.mean([value[name] for value in each])) for name in each[0]}
        for split, each in found.items()
    }


def size_ratio(draws: list[Draw]) -> float:
    """Images tested / images learned from, of the mean split."""
    return float(np.mean([len(draw.labels) / draw.num_train for draw in draws]))


def summarise_draws(draws: list[Draw], confidence=0.95) -> dict[str, dict]:
    """metric -> mean, std (over splits, divided by J - 1), min, max, num_splits, values by split,
    and low, high: the corrected resampled interval of the mean, within the metric's bounds.

    Of a split with several seeds their mean counts as one value. A split in which the metric is
    undefined (a test part of one class) is left out and named under "undefined"; with fewer than
    two values std, low and high are NaN.
    """
    table, ratio = values_by_split(draws), size_ratio(draws)
    result = {}
    for name in next(iter(table.values())):
        values = {split: row[name] for split, row in table.items()}
        defined = np.array([value for value in values.values() if np.isfinite(value)])
        mean = std = low = high = smallest = largest = float("nan")
        if len(defined):
            mean, smallest, largest = map(float, (defined.mean(), defined.min(), defined.max()))
        if len(defined) > 1:
            test = corrected_resampled_t_test(defined, ratio, confidence)
            low, high = np.clip([test["low"], test["high"]], *BOUNDS.get(name, (0, 1))).tolist()
            std = float(defined.std(ddof=1))
        result[name] = {
            "mean": mean,
            "std": std,
            "min": smallest,
            "max": largest,
            "low": low,
            "high": high,
            "num_splits": len(defined),
            "values": values,
            "undefined": [split for split, value in values.items() if not np.isfinite(value)],
        }
    return result


def check_same_draws(draws: list[Draw], others: list[Draw]) -> None:
    """Raises ValueError unless both test the same images, equally labelled, in the same splits."""
    first, second = ({draw.split: draw for draw in part} for part in (draws, others))
    if set(first) != set(second):
        raise ValueError(
            f"its splits are {', '.join(second)}, here they are {', '.join(first)}; expected the "
            "same"
        )
    for split, draw in first.items():
        here, there = (
            dict(zip(one.file_names, one.labels.tolist(), strict=True))
            for one in (draw, second[split])
        )
        if here != there:
            shared = len(here.keys() & there.keys())
            raise ValueError(
                f"its {split} tests {len(there)} images, here {len(here)}, {shared} of them the "
                "same; expected the same images with the same labels"
            )


def compare_draws(draws: list[Draw], others: list[Draw], confidence=0.95) -> dict[str, dict]:
    """metric -> `corrected_resampled_t_test` of the differences (draws - others) by split.

    Metrics that are undefined in a split of either are compared over the other splits; with fewer
    than two there is no test, and the metric is absent.
    """
    first, second = values_by_split(draws), values_by_split(others)
    ratio = size_ratio(draws)
    result = {}
    for name in next(iter(first.values())):
        differences = {split: first[split][name] - second[split][name] for split in first}
        defined = [value for value in differences.values() if np.isfinite(value)]
        if len(defined) > 1:
            test = corrected_resampled_t_test(defined, ratio, confidence)
            result[name] = {**test, "differences": differences}
    return result


def compare_pooled(
    pooled: list[Draw], others: list[Draw], *, num_resamples=2000, confidence=0.95, seed=0
) -> dict[str, dict]:
    """metric -> a, b, difference (a - b), low, high, p: of the means over repeats and seeds of two
    protocols with the same images, both evaluated on the same draws of whole groups.

    With one repeat and one seed of each this is `comparison.compare_models`.
    """
    first = pooled[0]
    place = {name: i for i, name in enumerate(first.file_names)}
    labels, count = first.labels, len(pooled)
    probabilities = [draw.probabilities for draw in pooled]
    for other in others:
        order = np.argsort([place[name] for name in other.file_names])
        probabilities.append(other.probabilities[order])
    values = [classification_metrics(labels, part) for part in probabilities]
    samples = bootstrap_samples(
        labels, probabilities, first.groups, num_resamples=num_resamples, seed=seed
    )
    result = {}
    for name in samples[0]:
        a, b = (
            float(np.mean([each[name] for each in part]))
            for part in (values[:count], values[count:])
        )
        drawn = [np.mean([each[name] for each in part], axis=0)
                 for part in (samples[:count], samples[count:])]  # fmt: skip
        low, high = percentile_interval(drawn[0] - drawn[1], confidence)
        result[name] = {
            "a": a, "b": b, "difference": a - b, "low": low, "high": high,
            "p": bootstrap_p_value(drawn[0] - drawn[1]),
        }  # fmt: skip
    return result
