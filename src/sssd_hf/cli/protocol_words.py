"""What the results of a protocol say: a table, and sentences on what it means."""

import math
import textwrap
from typing import Any

import numpy as np

from ..evaluation.metrics import SHOWN
from .protocol import Options, Run


def interval(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}" if np.isfinite([low, high]).all() else "unknown"


def print_results(results: dict[str, Any]) -> None:
    print(f"\n{as_table(results)}")
    for text in results["in_words"]:
        print(textwrap.fill(text, 100))


def as_table(results: dict[str, Any]) -> str:
    """The main metrics: pooled, over splits, compared."""
    pooled, comparison = results["pooled"], results["comparison"]
    one = results["protocol"] == "one split"
    titles = ["", *(["pooled", "95 % interval"] if pooled else [])]
    titles += ["least of seeds", "greatest"] if one else []
    titles += [] if one else ["mean of splits", "std", "min", "max", "95 % interval"]
    lines, compared = [titles], []
    for name in SHOWN:
        line = [name]
        if pooled:
            line += [f"{pooled['metrics'][name]:.3f}", interval(*pooled["intervals"][name])]
        over = results["over_splits"][name]
        if one:
            values = [each["metrics"][name] for each in pooled["each"]]
            line += [f"{min(values):.3f}", f"{max(values):.3f}"]
        else:
            line += [f"{over[part]:.3f}" for part in ("mean", "std", "min", "max")]
            line.append(interval(over["low"], over["high"]))
        lines.append(line)
    if comparison:
        compared = [[f"minus {comparison['with']}", "difference", "95 % interval", "p", "by"]]
        for name in SHOWN:
            for by, title in (("pooled", "pooled images"), ("over_splits", "splits")):
                row = (comparison[by] or {}).get(name)
                if row:
                    difference = row.get("difference", row.get("mean"))
                    line = [name, f"{difference:+.3f}", interval(row["low"], row["high"])]
                    compared.append([*line, f"{row['p']:.3f}", title])
    return "\n".join(align(block) for block in (lines, compared) if block)


def align(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    texts = ("  ".join(cell.ljust(w) for cell, w in zip(line, widths)) for line in lines)
    return "\n".join(text.rstrip() for text in texts) + "\n"


def in_words(results: dict[str, Any], runs: list[Run], options: Options) -> list[str]:
    """What the figures mean and what they leave out, in sentences."""
    protocol, data = options.protocol, options.data
    images, groups = results["num_images_tested"], results["num_groups_tested"]
    whose = f"{images} images"
    if groups:
        whose += f" of {groups} groups ({data.group_column_name})"
    kind, several = results["protocol"], len(protocol.list_of_seeds()) > 1
    texts = []
    if kind == "cross-validation":
        times = len({(run.repeat, run.seed) for run in runs})
        often = "once" if times == 1 else f"{times} times (repeats and seeds)"
        texts.append(
            f"Pooled: each of the {whose} was classified {often}, by a model fine-tuned on the "
            f"other folds; its fine-tuning saw no image of the {'group' if groups else 'fold'}."
        )
        if protocol.cross_validation_on == "training":
            texts.append("The folds are of the training images; the test images were not read.")
    elif kind == "one split":
        texts.append(f"Pooled: the {whose} of one test split, the mean over seeds.")
    else:
        texts.append(
            f"{len({run.split for run in runs})} splits may share test images ({whose} in all): "
            "predictions are not pooled, since an image in several splits is still one image."
        )
    if results["pooled"]:
        tested = "groups" if groups else "images"
        warning = "" if groups else " (too narrow if patients have several: --group_column_name)"
        texts.append(
            f"The pooled interval says how far the figure may be off because other {tested} might "
            f"have come{warning}; it does not know how much trainings differ."
        )
    if results["pooled"] and kind == "cross-validation":
        texts.append(
            "Pooled ROC AUC, average precision and calibration rank the scores of different folds' "
            "models against each other: they fall where these are of different scale, which the "
            "mean of splits does not feel."
        )
    if len({run.split for run in runs}) > 1:
        texts.append(
            "The interval of the mean of splits is the corrected resampled t interval (Nadeau and "
            f"Bengio 2003) with {results['test_train_ratio']:.2f} test images for each training "
            "image: it allows for trainings that overlap."
        )
    texts.append(pretraining_words(options, several))
    comparison = results["comparison"]
    if comparison:
        texts.append(comparison_words(comparison))
    if kind == "cross-validation":
        texts.append(
            "ensemble/ is the mean of all these models, for new images (predict.py). The figures "
            "above are of its members, not of it: no image is left that none of them has seen."
        )
    return texts


def pretraining_words(options: Options, several_seeds: bool) -> str:
    protocol = options.protocol
    if protocol.pretrain_on_all:
        seed = ", once for all seeds" if several_seeds else ""
        return (
            f"PRETRAINING SAW THE TEST IMAGES (--pretrain_on_all{seed}), without their labels: the "
            "figures hold for images that are at hand when the model is made, and may be too good "
            "for new ones."
        )
    start = options.parsed[options.stages()[0]][1].model_name_or_path
    unknown = f" Whether {start} had seen these test images is not known." if start else ""
    if not protocol.skip_pretraining:
        before = f", starting from {start}" if start else ""
        return f"Pretraining saw the training images of its run alone{before}.{unknown}"
    return f"Fine-tuning began from {start}.{unknown}" if start else "There was no pretraining."


def comparison_words(comparison: dict[str, Any]) -> str:
    """On the AUC, else the accuracy, by the test that knows of the trainings."""
    tests = comparison["over_splits"]
    name = next((name for name in ("roc_auc", "accuracy") if name in tests), None)
    if name is None:
        return f"Compared with {comparison['with']} on one split: see the pooled differences."
    test = tests[name]
    if math.isnan(test["p"]):
        return (
            f"Compared with {comparison['with']} by {name}: {test['mean']:+.3f} on every split. "
            "How far that may be off cannot be estimated from equal differences."
        )
    better = test["mean"] > 0
    clear = test["low"] > 0 or test["high"] < 0
    verdict = f"this is {'better' if better else 'worse'}" if clear else "no difference is shown"
    return (
        f"Compared with {comparison['with']} by {name} over splits: {verdict} "
        f"({test['mean']:+.3f}, {test['low']:+.3f} to {test['high']:+.3f}, p {test['p']:.3f}, "
        "corrected resampled t-test). The pooled differences know of the tested patients alone."
    )
