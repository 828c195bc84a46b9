"""Figures of a method over runs whose test sets may overlap: draws of splits, or seeds on one.

`protocols` summarises draws by the corrected resampled t-test, which speaks of other training sets;
here the bootstrap of patients, each drawn in all runs or in none, speaks of other patients tested.
"""

from __future__ import annotations

import numpy as np

from sssd_hf.evaluation.comparison import bootstrap_p_value, corrected_resampled_t_test, holm
from sssd_hf.evaluation.intervals import (
    MEANS_OVER_IMAGES,
    count_groups,
    draw_groups,
    draw_strata,
    percentile_interval,
    shows_every_class,
)
from sssd_hf.evaluation.metrics import check_predictions
from sssd_hf.evaluation.protocols import Draw, size_ratio
from sssd_hf.evaluation.resampling import resampled_metrics

REPORTED = (
    "accuracy", "roc_auc", "balanced_accuracy", "recall", "specificity", "f1", "log_loss", "brier",
)  # fmt: skip


def _units(draw: Draw) -> list[str]:
    """[N] what the bootstrap draws: patients, or images where patients are not known."""
    return [str(name) for name in (draw.file_names if draw.groups is None else draw.groups)]


def _bootstrap(runs: list[Draw], num_resamples: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Metrics [R] of each run, on the same R draws of the groups of all of them: a patient who is
    in the test sets of several runs is drawn in all or in none.

    A metric whose spread the draws cannot show in one of the runs is all NaN, by the rule of
    `bootstrap_intervals`: with a class in a single group all but means over the images, with a
    single group everything."""
    labels = np.concatenate([run.labels for run in runs])
    units = np.concatenate([_units(run) for run in runs])
    num_classes = runs[0].probabilities.shape[1]
    index, strata = draw_strata(labels, num_classes, units)
    drawn = draw_groups(np.random.default_rng(seed), strata, num_resamples)
    ends = np.cumsum([len(run.labels) for run in runs])
    parts = np.split(index, ends[:-1])
    tested = [(labels, units), *((run.labels, _units(run)) for run in runs)]
    shown = REPORTED
    if any(count_groups(*part) < 2 for part in tested):
        shown = ()
    elif not all(shows_every_class(y, num_classes, groups) for y, groups in tested):
        shown = MEANS_OVER_IMAGES
    samples = []
    for run, part in zip(runs, parts):
        found = resampled_metrics(run.labels, run.probabilities, drawn[:, part])
        unknown = np.full(num_resamples, np.nan)
        samples.append({name: found[name] if name in shown else unknown for name in REPORTED})
    return samples


def _values(runs: list[Draw]) -> dict[str, np.ndarray]:
    whole = [
        resampled_metrics(run.labels, run.probabilities, np.ones((1, len(run.labels))))
        for run in runs
    ]
    return {name: np.array([values[name][0] for values in whole]) for name in REPORTED}


def _check(runs: list[Draw]) -> None:
    if not runs:
        raise ValueError("found no runs, expected at least one")
    for run in runs:
        check_predictions(run.labels, run.probabilities)
    widths = {run.probabilities.shape[1] for run in runs}
    if len(widths) > 1:
        raise ValueError(f"the runs have {sorted(widths)} classes, expected the same number in all")


def _by_split(runs: list[Draw], values: np.ndarray) -> list[float]:
    """Means over the runs of each split."""
    found: dict[str, list[float]] = {}
    for run, value in zip(runs, values):
        found.setdefault(run.split, []).append(float(value))
    return [float(np.mean(each)) for each in found.values()]


def _same_test(runs: list[Draw]) -> bool:
    return all(set(run.file_names) == set(runs[0].file_names) for run in runs)


def summarise_runs(
    runs: list[Draw], *, num_resamples=2000, confidence=0.95, seed=0
) -> dict[str, dict]:
    """Mean, spread and interval of each of `REPORTED` over runs.

    Returns metric -> values (one a run), mean, std (divided by J - 1; None for one run), min, max,
    low and high: the percentile bootstrap of groups, each draw applied to all runs, of the mean
    over runs; NaN where the draws cannot show it (`bootstrap_intervals`). It says how the mean
    would move with other test patients, not with other training sets or seeds; std shows these.

    Raises:
        ValueError: for no run, and as `check_predictions`.
    """
    _check(runs)
    values, samples = _values(runs), _bootstrap(runs, num_resamples, seed)
    result = {}
    for name in REPORTED:
        low, high = percentile_interval(np.mean([s[name] for s in samples], axis=0), confidence)
        result[name] = {
            "values": values[name].tolist(), "mean": float(values[name].mean()),
            "std": float(values[name].std(ddof=1)) if len(runs) > 1 else None,
            "min": float(values[name].min()), "max": float(values[name].max()),
            "low": low, "high": high,
        }  # fmt: skip
    return result


def compare_runs(
    first: list[Draw], second: list[Draw], *, num_resamples=2000, confidence=0.95, seed=0
) -> dict[str, dict]:
    """Differences first - second of two methods that were run on the same draws or seeds, in pairs.

    Returns metric -> differences (one a pair), mean, and two judgements of it:

    - "bootstrap": low, high, p of the mean difference when other patients are tested (groups drawn
      whole, the same for both methods and all pairs);
    - "resampled_t": low, high, t, p of Nadeau and Bengio's corrected test over the splits, which
      also holds for other training sets; of several seeds on a split the mean counts as one value.
      None for fewer than two splits, or where all pairs are tested on the same images.

    Raises:
        ValueError: for unequal numbers of runs, pairs on different images, and as `summarise_runs`.
    """
    _check([*first, *second])
    if len(first) != len(second):
        raise ValueError(f"found {len(first)} and {len(second)} runs, expected as many, in pairs")
    for a, b in zip(first, second):
        if list(a.file_names) != list(b.file_names) or (a.labels != b.labels).any():
            raise ValueError(
                "two runs of a pair have different test images or labels, expected the same in the "
                "same order"
            )
    values_a, values_b = _values(first), _values(second)
    samples = _bootstrap([*first, *second], num_resamples, seed)
    half = len(first)
    result = {}
    for name in REPORTED:
        differences = values_a[name] - values_b[name]
        drawn = [a[name] - b[name] for a, b in zip(samples[:half], samples[half:])]
        drawn = np.mean(drawn, axis=0)
        low, high = percentile_interval(drawn, confidence)
        test = None
        by_split = _by_split(first, differences)
        if len(by_split) > 1 and not _same_test(first) and np.isfinite(by_split).all():
            test = corrected_resampled_t_test(by_split, size_ratio(first), confidence)
        result[name] = {
            "differences": differences.tolist(), "mean": float(differences.mean()),
            "bootstrap": {"low": low, "high": high, "p": bootstrap_p_value(drawn)},
            "resampled_t": test,
        }  # fmt: skip
    return result


def adjust(comparisons: list[dict[str, dict]], metric: str) -> None:
    """Holm's adjusted p-values of one metric over the comparisons of a table, written into them as
    "p_holm" of "bootstrap" and of "resampled_t"."""
    for kind in ("bootstrap", "resampled_t"):
        parts = [found[metric][kind] for found in comparisons]
        known = [part for part in parts if part is not None]
        adjusted = holm([part["p"] for part in known])
        for part, p in zip(known, adjusted):
            part["p_holm"] = float(p)
