"""What an evaluation found, in sentences for readers who are no statisticians."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sssd_hf.evaluation.figures import METRIC_NAMES

NOTICE = (
    "Research software, not a medical device. It has not been cleared by any authority, and its "
    "answers must not be used to diagnose or treat anyone."
)


@dataclass(frozen=True)
class Sentence:
    """One statement of the summary; grave ones are marked."""

    heading: str
    text: str
    grave: bool = False


def known(value) -> bool:
    """Whether a figure is there and defined (JSON has null for NaN)."""
    return isinstance(value, (int, float)) and math.isfinite(value)


NBSP = "\N{NO-BREAK SPACE}"
FEW = 15  # patients of a class below which a bootstrap's 95 % interval of its share holds it rarer


def number(value, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if known(value) else "–"


def percent(value, digits: int = 1) -> str:
    """With a space that does not break."""
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%" if known(value) else "–"


def bounds(intervals, metric):
    """(low, high) of a metric, or (None, None), also where it has no width: where all resamples
    agree they tell nothing of other images."""
    low, high = (intervals or {}).get(metric) or (None, None)
    return (low, high) if known(low) and known(high) and low < high else (None, None)


def percent_with_interval(values, intervals, metric) -> str:
    low, high = bounds(intervals, metric)
    text = percent(values.get(metric))
    return (
        text
        if low is None
        else f"{text} (95\N{NO-BREAK SPACE}% interval {percent(low)} to {percent(high)})"
    )


def number_with_interval(values, intervals, metric) -> str:
    low, high = bounds(intervals, metric)
    text = number(values.get(metric))
    return (
        text
        if low is None
        else f"{text} (95\N{NO-BREAK SPACE}% interval {number(low)} to {number(high)})"
    )


def unit_of(results: dict) -> str:
    """What groups are called: "patients" where their column says so."""
    name = results.get("group_column_name") or ""
    return "patients" if "patient" in name.lower() else "groups"


def class_counts(results: dict) -> dict[str, int]:
    return {name: row["support"] for name, row in (results.get("per_class") or {}).items()}


def majority_rate(results: dict) -> float | None:
    """Accuracy (0..1) of always naming the test's most frequent class."""
    counts = class_counts(results)
    return max(counts.values()) / sum(counts.values()) if sum(counts.values()) else None


def audit_fits(results: dict, audit: dict | None) -> bool:
    """Whether the audit's probes were judged on the split that the model was tested on."""
    return bool(
        audit
        and results.get("test_split") != "all"
        and audit.get("split_column") == results.get("split_column")
        and (audit.get("shortcuts") or {}).get("part") == "test"
        and same_test_images(results, audit)
    )


def same_test_images(results: dict, audit: dict) -> bool:
    """By the digests of their names, which files that older versions wrote do not have."""
    digests = results.get("test_images_digest"), audit.get("test_images_digest")
    return None in digests or digests[0] == digests[1]


def key_figures(results: dict) -> list[tuple[str, str, str]]:
    """(name, value, interval) of the handful that a reader looks for first."""
    values, intervals = results, results.get("intervals")
    rows = [("Accuracy", percent, values, intervals, "accuracy")]
    rows.append(("ROC AUC", number, values, intervals, "roc_auc"))
    point = results.get("operating_point")
    if point:
        values, intervals = point["metrics"], point["intervals"]
    # of several classes each against the rest: guessing has 1 / K and 1 - 1 / K
    mean = ", mean over the classes" if len(results.get("labels") or []) > 2 else ""
    rows.append((f"Sensitivity{mean}", percent, values, intervals, "recall"))
    rows.append((f"Specificity{mean}", percent, values, intervals, "specificity"))
    figures = []
    for name, text, values, intervals, metric in rows:
        low, high = bounds(intervals, metric)
        interval = "" if low is None else f"{text(low)} to {text(high)}"
        figures.append((name, text(values.get(metric)), interval))
    return figures


def summary_sentences(results: dict, audit: dict | None = None) -> list[Sentence]:
    """The summary of a report: all_results.json of evaluate.py, and audit.json where known."""
    parts = [
        _seen(results), _pretrained_on(results), _shared_groups(results), _tested(results),
        _headline(results),
        _interval(results), _groups(results), _threshold(results),
        _baselines(results, audit), _calibration(results), *_subgroups(results), _findings(audit),
    ]  # fmt: skip
    return [part for part in parts if part is not None]


def _seen(results):
    seen = results.get("num_test_images_seen")
    if not seen:
        return None
    text = (
        f"{seen} of the {results['num_test_images']} test images were, by their file names, used "
        "in training or for choosing the model: the figures do not tell how it does on images "
        "that are new to it, and are too good."
    )
    return Sentence("Not a test", text, grave=True)


def _pretrained_on(results):
    count = results.get("num_test_images_pretrained_on")
    if count is None and results.get("num_test_images_seen") is not None:
        text = (
            "Whether the checkpoint that its training started from had seen test images is not "
            "known: it has no record of what it was trained on here."
        )
        return Sentence("Seen before", text)
    if not count:
        return None
    text = (
        f"{count} of the {results['num_test_images']} test images were, by their file names, used "
        "in the training that this one started from: the figures may be too good."
    )
    return Sentence("Seen before", text, grave=True)


def _shared_groups(results):
    shared = results.get("num_groups_shared_with_training")
    if not shared:
        return None
    unit, groups = unit_of(results), results.get("num_test_groups")
    text = (
        f"{shared} of the {groups} {unit} of the test also have images in training or validation: "
        f"the figures do not tell how the model does on new {unit}, and are probably too good."
    )
    return Sentence(f"Shared {unit}", text, grave=True)


def _tested(results):
    counts = class_counts(results)
    classes = ", ".join(f"{count} {name}" for name, count in counts.items())
    groups = results.get("num_test_groups")
    who = f" of {groups} {unit_of(results)}" if groups else ""
    split = results.get("split_column")
    where = f", the split “{results.get('test_split', 'test')}”" + (
        f" of the column {split}" if split else ""
    )
    if results.get("test_split") == "all" and not split:
        where = ", all images of the data"
    text = f"A classifier was tested on {results['num_test_images']} images{who}{where}"
    text += f" ({classes})." if classes else "."
    return Sentence("What was tested", text)


def _headline(results):
    intervals = results.get("intervals")
    text = (
        "The class that the model holds most probable is right for "
        f"{percent_with_interval(results, intervals, 'accuracy')} of the images."
    )
    auc, labels = results.get("roc_auc"), results.get("labels") or []
    if known(auc) and len(labels) == 2:
        text += (
            f" ROC AUC {number_with_interval(results, intervals, 'roc_auc')}: of one image of "
            f"{labels[1]} and one of {labels[0]}, taken at random, it gives the former the higher "
            f"probability of {labels[1]} in {percent(auc, 0)} of cases; guessing would in "
            f"{percent(0.5, 0)}."
        )
    elif known(auc):
        text += (
            f" ROC AUC {number_with_interval(results, intervals, 'roc_auc')}, the mean over the "
            "classes, each against the rest; guessing gives 0.5."
        )
    else:
        reason = (results.get("reasons") or {}).get("roc_auc", "it is not defined")
        text += f" There is no ROC AUC: {reason}."
    return Sentence("Result", text, grave=not known(auc))


def _interval(results):
    text = (
        "An interval says how far the figure would be expected to move with other "
        f"{unit_of(results) if results.get('num_test_groups') else 'images'} drawn in the same "
        "way. It does not cover other hospitals, scanners or times."
    )
    groups, few = results.get("num_test_groups"), _fewest(results)
    if not few or few[1] >= FEW:
        text += " The true value lies in about 95 of 100 such intervals."
    for name, number in _without_width(results):
        text += (
            f" {name.capitalize()} of 0 or 100{NBSP}% has none: what never happened in {number} "
            f"may still happen in up to {percent(min(1, 3 / number), 0)} (the rule of three)."
        )
    if not groups:
        text += (
            " Here images were taken as independent of each other: if patients have several "
            "images, the intervals are too narrow."
        )
    elif groups < 30:
        text += f" With {groups} {unit_of(results)} it is itself rough."
    if few and few[1] < FEW:
        text += (
            f" Only {few[1]} {unit_of(results) if groups else 'images'} are of {few[0]}: intervals "
            "of what depends on them, sensitivity, specificity and ROC AUC, are often too narrow."
        )
    return Sentence("What the intervals mean", text, grave=not groups or bool(few and few[1] < FEW))


def _fewest(results) -> tuple[str, int] | None:
    """The class with the fewest patients (images, where these are not known), and how many."""
    counts = results.get("num_test_groups_by_class") or class_counts(results)
    present = {name: count for name, count in counts.items() if count}
    return min(present.items(), key=lambda item: item[1]) if present else None


def _without_width(results) -> list[tuple[str, int]]:
    """(figure, patients or images that it counts) of the shares that all resamples agree in."""
    counts = results.get("num_test_groups_by_class") or class_counts(results)
    total = results.get("num_test_groups") or results["num_test_images"]
    shares = [("accuracy", "accuracy", total)]
    if len(counts) == 2:
        negative, positive = counts.values()
        shares += [("recall", "sensitivity", positive), ("specificity", "specificity", negative)]
    found = []
    for metric, name, number in shares:
        low, high = (results.get("intervals") or {}).get(metric) or (None, None)
        if known(low) and low == high and number:
            found.append((name, number))
    return found


def _groups(results):
    whole = results.get("aggregated")
    if not whole:
        return None
    unit = unit_of(results)
    if "metrics" not in whole:
        return Sentence(f"By {unit}", f"Not evaluated: {whole.get('reason', 'not known')}")
    text = (
        f"The images of each of {whole['count']} {unit} taken together ({whole['method']} of their "
        f"probabilities{_of_finding(results)}): right for "
        f"{percent_with_interval(whole['metrics'], whole.get('intervals'), 'accuracy')}"
    )
    if known(whole["metrics"].get("roc_auc")):
        auc = number_with_interval(whole["metrics"], whole.get("intervals"), "roc_auc")
        text += f", ROC AUC {auc}"
    return Sentence(f"By {unit}", text + ".")


def _of_finding(results) -> str:
    """ "max" and "noisy_or" look for one class, which without --positive_label is the last one."""
    labels, method = results.get("labels") or [], results["aggregated"]["method"]
    return f" of {labels[1]}" if method != "mean" and len(labels) == 2 else ""


def _threshold(results):
    point = results.get("operating_point")
    if not point:
        return None
    name = point.get("positive_label") or results.get("positive_label")
    values, intervals = point["metrics"], point.get("intervals")
    text = (
        f"Called {name} from a probability of {number(point['threshold'])} on (chosen on "
        f"{point['fitted_on']} by the rule “{point['rule']}”{_before(results)}), it finds "
        f"{percent_with_interval(values, intervals, 'recall')} of the images of {name} and leaves "
        f"{percent_with_interval(values, intervals, 'specificity')} of the others alone. Of those "
        f"called {name}, {percent(values.get('precision'))} are; at another share of {name} than "
        "in this test that figure is another."
    )
    return Sentence("At the threshold", text)


def _before(results) -> str:
    """Only where the tested images are known to be others than those that were fitted on."""
    return ", before the test" if results.get("num_test_images_seen") == 0 else ""


def _baselines(results, audit):
    accuracy, rate = results.get("accuracy"), majority_rate(results)
    if rate is None or not known(accuracy):
        return None
    low, _ = bounds(results.get("intervals"), "accuracy")
    text = (
        f"Always naming the most frequent class would be right for {percent(rate)}: the model is "
        f"{points(accuracy - rate)}."
    )
    best, grave = rate, False
    if audit_fits(results, audit) and "thumbnails" in audit["shortcuts"]:
        probes = audit["shortcuts"]
        thumbnails = max(
            probes["thumbnails"][f"{kind}_accuracy"] for kind in ("ridge", "nearest_neighbor")
        )
        files = max(probes["files"][f"{kind}_accuracy"] for kind in ("logistic", "forest"))
        text += (
            f" Simple classifiers that see only thumbnails of 16 x 16 pixels reach "
            f"{percent(thumbnails)} (the model is {points(accuracy - thumbnails)}); those that are "
            f"told only the size and format of the files, {percent(files)} "
            f"({points(accuracy - files)})."
        )
        best = max(best, thumbnails, files)
    elif audit and "skipped" not in (audit.get("shortcuts") or {"skipped": ""}):
        text += " The audit at hand is of another split: its baselines are not compared."
    else:
        text += " What thumbnails alone would reach is not known: no audit was given."
    if low is not None and low <= best:
        grave = True
        text += (
            f" The interval of the accuracy reaches down to {percent(low)}: this test does not "
            "show that the model beats the best of these."
        )
    return Sentence("Against simple baselines", text, grave)


def points(difference: float) -> str:
    word = "above" if difference >= 0 else "below"
    return f"{abs(100 * difference):.1f} points {word}"


def _calibration(results):
    found = results.get("calibration")
    if not found:
        ece = results.get("ece")
        text = "The probabilities are not calibrated; do not read 0.9 as “right in 90 % of cases”."
        if known(ece):
            text += f" On average they miss the observed shares by {number(ece)} (ECE)."
        return Sentence("Probabilities", text)
    before, after = found["uncalibrated"], found["calibrated"]
    used = found.get("used") or {}
    better = known(after.get("log_loss")) and after["log_loss"] <= before["log_loss"]
    text = (
        f"The probabilities were calibrated on {used.get('fitted_on', 'validation')} (temperature "
        f"{number(used.get('temperature'))}). On the test their mean distance from the observed "
        f"shares (ECE) is {number(after.get('ece'))}, before calibration "
        f"{number(before.get('ece'))}; log loss {number(after.get('log_loss'))}, before "
        f"{number(before.get('log_loss'))}."
    )
    if not better:
        text += " Calibration did not help on this test."
    return Sentence("Probabilities", text, grave=not better)


def _subgroups(results):
    columns = results.get("subgroups") or {}
    if not columns:
        text = "No subgroups were compared: whether it works equally for all is not known."
        return [Sentence("Subgroups", text)]
    sentences = []
    for column, found in columns.items():
        worst = found.get("worst")
        if not worst:
            small = f"{column}: too few images in the subgroups to compare them."
            sentences.append(Sentence("Subgroups", small))
            continue
        metric = worst["metric"]
        name = METRIC_NAMES.get(metric, metric)
        low, high = worst.get("low"), worst.get("high")
        interval = (
            f" (95\N{NO-BREAK SPACE}% interval {number(low)} to {number(high)})"
            if known(low)
            else ""
        )
        below = known(high) and known(worst["overall"]) and high < worst["overall"]
        sentences.append(
            Sentence(
                "Worst subgroup",
                f"By {column} it does worst for {worst['value']}: {name} "
                f"{number(worst['estimate'])}{interval}, all images {number(worst['overall'])}. "
                "The worst of several is in part chance.",
                grave=below,
            )
        )
    return sentences


def _findings(audit):
    if audit is None:
        text = (
            "The data were not audited (scripts/audit.py): whether patients or copies of images "
            "are shared by training and test is not known."
        )
        return Sentence("Data audit", text, grave=True)
    findings = audit.get("findings") or []
    counts = {
        severity: sum(one["severity"] == severity for one in findings)
        for severity in ("critical", "warning", "note")
    }
    text = (
        f"Findings: {counts['critical']} critical, {counts['warning']} to be warned of, "
        f"{counts['note']} to note. "
        if findings
        else "The audit found nothing to object to."
    )
    gravest = [one for one in findings if one["severity"] == "critical"] or [
        one for one in findings if one["severity"] == "warning"
    ]
    text += " ".join(one["text"] for one in gravest[:3])
    return Sentence("Data audit", text.strip(), grave=bool(counts["critical"]))
