"""The figures of an evaluation as PNG files, each with a caption that says how to read it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from sssd_hf.evaluation import curves, diagrams
from sssd_hf.evaluation.calibration import reliability_curve
from sssd_hf.evaluation.metrics import check_predictions, classification_metrics
from sssd_hf.evaluation.plots import DPI

NUM_BINS = 10  # of the reliability diagram
MAX_PANELS = 12  # classes with a histogram of their own
MAX_CURVES = 21  # classes with a curve of their own: what colours and line styles tell apart
METRIC_NAMES = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "roc_auc": "ROC AUC",
    "average_precision": "average precision", "precision": "precision", "recall": "sensitivity",
    "specificity": "specificity", "f1": "F1", "mcc": "Matthews correlation",
    "cohen_kappa": "Cohen's kappa", "log_loss": "log loss", "brier": "Brier score",
    "ece": "expected calibration error",
}  # fmt: skip


class NothingToDraw(ValueError):
    """Why a figure is left out."""


def write_figures(
    folder, results: dict, labels, probabilities, calibrated=None, groups=None, *,
    num_resamples=1000, seed=0,
) -> list[tuple[str, str]]:  # fmt: skip
    """Write the figures of an evaluation into `folder`; (file name, caption) of each.

    Args:
        folder: is made where it is missing; figures of these names in it are replaced.
        results: what evaluate.py writes as all_results.json; used are "labels" (the K names; else
            "0", "1", ...), "roc_auc", "average_precision" and their "intervals", "operating_point",
            "subgroups" and "group_column_name". Anything may be missing.
        labels: [N] integers; probabilities: [N, K] of the model as it is.
        calibrated: [N, K], or None without a calibration; the operating point's threshold is for
            these.
        groups: N ids (patients) or None; bands are of draws of whole groups.
        num_resamples: of the bands.

    captions.json beside the figures has file, title, caption and alt of each; where one is left
    out, as ROC curves are with one class only, file is null and caption the reason.

    Raises:
        ValueError: for N = 0 and as `check_predictions`.
    """
    labels, probabilities = check_predictions(labels, probabilities)
    if len(labels) == 0:
        raise ValueError("labels and probabilities are empty, expected at least one image")
    if calibrated is not None:
        _, calibrated = check_predictions(labels, calibrated)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = results.get("labels") or [str(i) for i in range(probabilities.shape[1])]
    scores = probabilities if calibrated is None else calibrated
    options = {"num_resamples": num_resamples, "seed": seed}
    band = _band_text(groups, results)
    # file name: title, and what draws it and returns the figure, its caption and alternative text
    # fmt: off
    figures = {
        "roc.png": ("ROC curve", lambda: _roc(
            labels, probabilities, scores, groups, names, results, band, options)),
        "precision_recall.png": ("Precision-recall curve", lambda: _precision_recall(
            labels, probabilities, scores, groups, names, results, band, options)),
        "reliability.png": ("Reliability of the probabilities", lambda: _reliability(
            labels, probabilities, calibrated, names)),
        "scores.png": ("Probabilities by class", lambda: _scores(labels, scores, names, results)),
        "confusion.png": ("Confusion matrix", lambda: _confusion(
            labels, probabilities.argmax(axis=1), names, "Most probable class")),
        "confusion_operating_point.png": ("Confusion matrix at the operating point",
            lambda: _confusion_at_point(labels, scores, names, results)),
        "coverage.png": ("Coverage and accuracy", lambda: _coverage(
            labels, probabilities, groups, band, options)),
        "subgroups.png": ("Subgroups", lambda: _subgroups(results)),
    }
    # fmt: on
    written, captions = [], []
    for file, (title, draw) in figures.items():
        (folder / file).unlink(missing_ok=True)
        try:
            figure, caption, alt = draw()
        except NothingToDraw as reason:
            captions.append({"file": None, "title": title, "caption": str(reason), "alt": ""})
            continue
        figure.savefig(folder / file, dpi=DPI, format="png")
        written.append((file, caption))
        captions.append({"file": file, "title": title, "caption": caption, "alt": alt})
    text = json.dumps(captions, indent=2, ensure_ascii=False) + "\n"
    (folder / "captions.json").write_text(text, encoding="utf-8")
    return written


def _band_text(groups, results):
    if groups is None:
        return "pointwise 95 % bootstrap of images (too narrow if patients have several)"
    name = results.get("group_column_name")
    return "pointwise 95 % bootstrap of whole groups" + (f" ({name})" if name else "")


def _band_sentence(drawn, band):
    """What the shading is, or why there is none, for Curve objects `drawn`."""
    if len(drawn) > diagrams.MAX_BANDS:
        return "With so many classes the bands are left out."
    if any(curve.low is None for curve in drawn):
        return "No band: a class occurs in one image or group only, its spread cannot be seen."
    return f"Band: {band}."


def _interval(results, metric):
    """ " (0.88 to 0.97)", or nothing where it is not known."""
    low, high = (results.get("intervals") or {}).get(metric) or (None, None)
    return "" if low is None or low != low else f" ({low:.3f} to {high:.3f})"


def _drawn_classes(labels, names):
    """Class 1 of two, else all that occur."""
    present = np.unique(labels)
    if len(present) < 2:
        raise NothingToDraw(
            f"All {len(labels)} images have the label {names[present[0]]}: there is nothing to "
            "tell apart, and no curve."
        )
    return [1] if len(names) == 2 else present.tolist()[:MAX_CURVES]


def _operating_point(labels, scores, results):
    """(threshold, decided positive [N] bool) or (None, None)."""
    point = results.get("operating_point")
    if not point or point.get("threshold") is None or scores.shape[1] != 2:
        return None, None
    return point["threshold"], scores[:, 1] >= point["threshold"]


def _one_against_rest(kind, labels, probabilities, groups, names, results, options):
    """[(legend text, Curve)] of `curves.roc` or `curves.precision_recall`, and the text of one."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    draw, area, metric = {
        "roc": (curves.roc, roc_auc_score, "roc_auc"),
        "pr": (curves.precision_recall, average_precision_score, "average_precision"),
    }[kind]
    drawn = []
    for index in _drawn_classes(labels, names):
        value = area(labels == index, probabilities[:, index])
        text = f"{names[index]}: {METRIC_NAMES[metric]} {value:.3f}"
        if len(names) == 2:
            text = f"{METRIC_NAMES[metric]} {value:.3f}{_interval(results, metric)}"
        drawn.append((text, draw(labels, probabilities, index, groups, **options)))
    return drawn


def _roc(labels, probabilities, scores, groups, names, results, band, options):
    drawn = _one_against_rest("roc", labels, probabilities, groups, names, results, options)
    threshold, called = _operating_point(labels, scores, results)
    point, where = None, ""
    if threshold is not None:
        sensitivity = called[labels == 1].mean()
        false_alarms = called[labels == 0].mean()
        point = (false_alarms, sensitivity, f"threshold {threshold:.3f}")
        where = (
            f" The dot is the operating point: sensitivity {sensitivity:.3f}, specificity "
            f"{1 - false_alarms:.3f}."
        )
    what = f"for {names[1]}" if len(names) == 2 else "for each class against the rest"
    caption = (
        f"Sensitivity against false alarms as the threshold moves, {what}; the dashed diagonal is "
        f"chance. {_band_sentence([curve for _, curve in drawn], band)}{where}"
    )
    alt = f"ROC curves: {'; '.join(text for text, _ in drawn)}.{where}"
    return diagrams.roc_figure(drawn, point), caption, alt


def _precision_recall(labels, probabilities, scores, groups, names, results, band, options):
    drawn = _one_against_rest("pr", labels, probabilities, groups, names, results, options)
    threshold, called = _operating_point(labels, scores, results)
    point, where, share = None, "", None
    if len(names) == 2:
        share = (labels == 1).mean()
        where = f" The dashed line is the share of {names[1]}, {share:.1%}: what chance gives."
    if threshold is not None and called.any():
        recall, precision = called[labels == 1].mean(), (labels == 1)[called].mean()
        point = (recall, precision, f"threshold {threshold:.3f}")
        where += (
            f" The dot is the operating point: sensitivity {recall:.3f}, precision {precision:.3f}."
        )
    what = f"images called {names[1]}" if len(names) == 2 else "images called so, for each class"
    caption = (
        f"How many {what} are right, against how many are found. The share of a class decides how "
        f"high this lies. {_band_sentence([curve for _, curve in drawn], band)}{where}"
    )
    alt = f"Precision-recall curves: {'; '.join(text for text, _ in drawn)}.{where}"
    return diagrams.precision_recall_figure(drawn, point, share), caption, alt


def _reliability(labels, probabilities, calibrated, names):
    index = 1 if len(names) == 2 else None
    parts = [("as the model gives them", probabilities)]
    if calibrated is not None:
        parts = [("before calibration", probabilities), ("after calibration", calibrated)]
    series, numbers = [], []
    for label, values in parts:
        series.append((label, reliability_curve(labels, values, NUM_BINS, index)))
        found = classification_metrics(labels, values)
        numbers.append(
            f"{label[0].upper()}{label[1:]}: ECE {found['ece']:.3f}, Brier {found['brier']:.3f}"
        )
    if index is None:
        x, y = "confidence (probability of the decided class)", "accuracy"
    else:
        x = f"probability of {diagrams.plain(names[1], 24)}"
        y = f"share that is {diagrams.plain(names[1], 24)}"
    caption = (
        "Probabilities that can be taken at their word lie on the diagonal: of the images given "
        "80 %, 80 % are so. Bars are Wilson 95 % intervals, which take images for independent; "
        "below, how many images each point stands for. " + "; ".join(numbers) + "."
    )
    alt = "Reliability diagram: " + "; ".join(numbers) + "."
    return diagrams.reliability_figure(series, x, y), caption, alt


def _scores(labels, scores, names, results):
    threshold, _ = _operating_point(labels, scores, results)
    panels = []
    for index in [1] if len(names) == 2 else range(min(len(names), MAX_PANELS)):
        inside, name = labels == index, names[index]
        rest = names[0] if len(names) == 2 else "the rest"
        panels.append({
            "title": "Probabilities by class" if len(names) == 2 else diagrams.plain(name, 30),
            "x_label": f"probability of {diagrams.plain(name, 24)}",
            "series": [(f"{rest} ({(~inside).sum()})", scores[~inside, index]),
                       (f"{name} ({inside.sum()})", scores[inside, index])],
        })  # fmt: skip
    where = "" if threshold is None else f" The dashed line is the threshold, {threshold:.3f}."
    left_out = len(names) - MAX_PANELS
    if left_out > 0:
        where += f" The last {left_out} classes are left out."
    caption = (
        "How the probabilities of a class lie for images that have it and for the others; each "
        "histogram sums to one. What overlaps is what no threshold tells apart." + where
    )
    medians = "; ".join(
        f"{label}: median {np.median(values):.3f}"
        for panel in panels
        for label, values in panel["series"]
        if len(values)
    )
    return diagrams.scores_figure(panels, threshold), caption, f"Histograms. {medians}.{where}"


def _confusion(labels, decided, names, title):
    matrix = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(matrix, (labels, decided), 1)
    rows = "; ".join(
        f"label {name}: " + ", ".join(f"{matrix[i, j]} as {other}" for j, other in enumerate(names))
        for i, name in enumerate(names)
        if matrix[i].any()
    )
    caption = f"{title}: images by label (rows) and decision, with their share of the row."
    return diagrams.confusion_figure(matrix, names, title), caption, f"{title}. {rows}."


def _confusion_at_point(labels, scores, names, results):
    threshold, called = _operating_point(labels, scores, results)
    if threshold is None:
        raise NothingToDraw("The model has no threshold: the most probable class is decided for.")
    return _confusion(labels, called.astype(int), names, f"At the threshold {threshold:.3f}")


def _coverage(labels, probabilities, groups, band, options):
    if len(labels) < 2:
        raise NothingToDraw("There is one image only.")
    curve = curves.coverage(labels, probabilities, groups, **options)
    half = curve.y[np.searchsorted(curve.x, 0.5 - 1e-9)]
    caption = (
        "Accuracy where only the images that the model is most sure of are answered, and the rest "
        f"is left to a reader: {half:.1%} on the surer half, {curve.y[-1]:.1%} (dashed) on all. "
        f"{_band_sentence([curve], band)}"
    )
    alt = f"Coverage curve: accuracy {half:.1%} at half, {curve.y[-1]:.1%} at full coverage."
    return diagrams.coverage_figure(curve), caption, alt


def _subgroups(results):
    columns = results.get("subgroups") or {}
    if not columns:
        raise NothingToDraw(
            "No column was named to report subgroups of: name columns of the metadata, such as "
            "sex or site, by --subgroup_columns."
        )
    metric = next(
        (found["worst"]["metric"] for found in columns.values() if found.get("worst")),
        "balanced_accuracy",
    )
    rows, texts = [], []
    for column, found in columns.items():
        rows.append({"label": column})
        for value, part in found["subgroups"].items():
            number = part["metrics"].get(metric)
            defined = number is not None and number == number
            low, high = (part.get("intervals") or {}).get(metric) or (None, None)
            bounded = defined and low is not None and low == low
            units = part.get("num_groups")
            size = f"{part['num_images']}" + ("" if units is None else f" of {units}")
            rows.append({
                "label": f"{diagrams.cut(value, 28)} ({size})",
                "estimate": number if defined else None,
                "low": low if bounded else None, "high": high if bounded else None,
                "small": part["small"],
            })  # fmt: skip
            texts.append(f"{column} {value} {number:.3f}" if defined else f"{column} {value} -")
    left_out = len(rows) - diagrams.MAX_ROWS
    caption = (
        f"The {METRIC_NAMES.get(metric, metric)} of each subgroup with its 95 % interval; of all "
        "images, the dashed line. In brackets: images, and of how many groups (patients). "
        "Hollow: too few to say much."
    )
    if left_out > 0:
        caption += f" {left_out} further rows are left out; all_results.json has all."
    figure = diagrams.forest_figure(
        rows[: diagrams.MAX_ROWS], METRIC_NAMES.get(metric, metric), results.get(metric)
    )
    return figure, caption, f"Subgroups by {metric}: {'; '.join(texts[: diagrams.MAX_ROWS])}."
