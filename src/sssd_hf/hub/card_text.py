"""From recorded results to the words and rows of a model card."""

import math
import re
from typing import Any

from .clean import clean_text, clean_value

# key of all_results.json -> its name, and whether it is a share
METRICS = {
    "accuracy": ("Accuracy", True),
    "balanced_accuracy": ("Balanced accuracy", True),
    "roc_auc": ("ROC AUC", False),
    "average_precision": ("Average precision", False),
    "recall": ("Sensitivity (recall)", True),
    "specificity": ("Specificity", True),
    "precision": ("Precision", True),
    "f1": ("F1", False),
    "mcc": ("Matthews correlation", False),
    "log_loss": ("Log loss", False),
    "brier": ("Brier score", False),
    "ece": ("Expected calibration error", False),
}
HEADLINE = ("accuracy", "roc_auc", "recall", "specificity")
PRECISIONS = {"no": "fp32"}  # Accelerate's word
# while training, where nobody measured it: a processor's share for each thread, a GPU at work
WATTS = {"cpu": 10.0, "cuda": 300.0, "mps": 30.0}
RECIPE_ROWS = (
    "per_device_train_batch_size", "weight_decay", "layer_decay", "ema_decay", "mixed_precision",
    "mask_ratio", "distillation", "class_weights", "metric_for_best_model", "seed",
)  # fmt: skip
MARK = "Written by sssd_hf from measured results; it is written anew, and changes by hand are lost."
EVERY_CARD = {  # what it says, of a model or of a recipe, by the names that the templates have
    "not_a_device": """\
**Research software, not a medical device.** Not validated for any clinical use: do not base a
diagnosis, a treatment or a triage on it.""",
    "intended_use": """\
For research: to compare methods, to study what such a model learns, to start training on other
images of the same kind.

Not for: deciding about a patient, by itself or as a second reader; images of another kind, device,
protocol or population than those it was trained on, without an evaluation there; a statement about
a single image as certain. Its scores are no probabilities of a disease in anybody's population.""",
    "citation": """\
The method: Tan et al., "Self-supervised learning with self-distillation on COVID-19 medical image
classification" (SSSD-COVID), Computer Methods and Programs in Biomedicine 243 (2024) 107876,
[doi 10.1016/j.cmpb.2023.107876](https://doi.org/10.1016/j.cmpb.2023.107876). The masked
autoencoder: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022,
[arXiv 2111.06377](https://arxiv.org/abs/2111.06377).""",
    "mark": MARK,
}
MAX_TEXT = 600  # characters of a text from outside
ALL_IMAGES = "all"  # as test_split: no split was tested, but all images of some data


def markdown(text: Any, limit: int = MAX_TEXT) -> str:
    """Text from outside as one line of Markdown that shows it and does nothing else: no markup, no
    HTML, no links."""
    line = " ".join(str(text).split())
    line = "".join(c for c in line if c.isprintable())
    if len(line) > limit:
        line = line[:limit] + " ..."
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_\[\]{}|~$#!^])", r"\\\1", line)
    line = line.replace("://", "&#58;//")  # else a bare address becomes a link
    line = re.sub(r"(?i)\bwww\.", "www&#46;", line).replace("@", "&#64;")
    line = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", line)  # else the start of a list
    return re.sub(r"^([-+=])", r"\\\1", line)


def fenced(code: str, language: str) -> str:
    """A block of code, in a fence longer than any inside."""
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def number(value: Any, share: bool = False) -> str:
    """71.4 % or 0.813; "undefined" for what the labels leave undefined."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return "undefined"
    return f"{100 * value:.1f} %" if share else f"{value:.3f}"


def interval_text(interval: Any, share: bool = False) -> str:
    """ "64.1 to 78.3", or "none"."""
    if not isinstance(interval, (list, tuple)) or len(interval) != 2 or None in interval:
        return "none"
    if interval[0] == interval[1]:  # all resamples agree: they tell nothing of other images
        return "none"
    low, high = (number(value, share).removesuffix(" %") for value in interval)
    return f"{low} to {high}" + (" %" if share else "")


def classes_meant(found: dict[str, Any], plain: bool = False) -> dict[str, str]:
    """Of which class the metrics of two classes are: the positive one need not be the disease.
    In Markdown, or `plain`."""
    labels = found.get("labels")
    if isinstance(labels, list) and len(labels) > 2:
        return dict.fromkeys(("recall", "specificity"), ", mean over the classes")
    if not isinstance(labels, list) or len(labels) != 2:
        return {}
    names = [clean_text(str(label)) for label in labels]
    negative, positive = names if plain else map(markdown, names)
    return {
        "average_precision": f" of {positive}",
        "recall": f": {positive} found",
        "specificity": f": {negative} found",
        "precision": f" of {positive}",
        "f1": f" of {positive}",
    }


def metric_rows(
    found: dict[str, Any], values: dict[str, Any], intervals: Any, keys: Any = METRICS
) -> list[dict[str, str]]:
    """Name, value and interval of the metrics that `values`, of the evaluation `found`, has, as
    texts."""
    intervals, meant = intervals or {}, classes_meant(found)
    return [
        {
            "name": METRICS[key][0] + meant.get(key, ""),
            "value": number(values[key], METRICS[key][1]),
            "interval": interval_text(intervals.get(key), METRICS[key][1]),
        }
        for key in keys
        if key in values
    ]


def evaluation_facts(
    found: dict[str, Any], training: dict[str, Any], config: dict[str, Any]
) -> dict[str, Any]:
    """all_results.json of evaluate.py as the card tells it."""
    count, groups = found["num_test_images"], found.get("num_test_groups")
    of_groups = f" of {groups} patients or groups" if groups else ""
    chosen = training.get("chosen_by")
    choice = {
        None: "How the checkpoint was chosen is not recorded.",
        "last": "The checkpoint is the last one; nothing was chosen.",
    }.get(chosen, f"The checkpoint was chosen by {chosen} on validation images.")
    method = found.get("interval_method") or "not recorded"
    times = found.get("times_test_was_read")
    what = "these images" if found.get("test_split") == ALL_IMAGES else "this test split"
    reading = f" The model read {what} {times} times." if times and times > 1 else ""
    seen, warnings = found.get("num_test_images_seen"), not_new(found)
    where = tested_images(found)
    protocol = f"{where}; {count} images{of_groups}. {choice} Intervals: {method}.{reading}"
    plain = clean_text(" ".join([*warnings, protocol]))
    heading = f"{count} test images{of_groups}"
    if seen:  # the table may be read, or copied, without the lines around it
        heading = f"{count} images{of_groups}, {seen} of them not new to the model"
    return {
        "heading": markdown(heading),
        "not_new": [markdown(text) for text in warnings],
        "protocol": markdown(plain, 3 * MAX_TEXT),
        "protocol_plain": plain,
        "headline": metric_rows(found, found, found.get("intervals"), HEADLINE),
        "rows": metric_rows(found, found, found.get("intervals")),
        "confusion": confusion_table(found),
        "patients": patients_text(found),
        **calibration_facts(found, config),
        **operating_facts(found),
        "subgroups": [
            subgroup_facts(name, values)
            for name, values in (found.get("subgroups") or {}).items()
            if isinstance(values, dict) and values.get("subgroups")
        ],
    }


def tested_images(found: dict[str, Any]) -> str:
    """Which images were tested, and whence that is known."""
    split, column = found.get("test_split") or "test", found.get("split_column")
    source = clean_value(found.get("split_source"), "split_source")
    if split == ALL_IMAGES:
        return "Test images: all images of the data that were given, not a split of them"
    if not isinstance(source, str) or not source:
        if column:
            return f"Test split: {split!r} of the column {column!r}"
        return f"Test split: {split!r}; how its images were assigned is not recorded"
    return f"Test split: {split!r}" + (
        f" of {source}" if source.startswith("the column ") else f", known from {source}"
    )


def not_new(found: dict[str, Any]) -> list[str]:
    """What of the tested images the training had too, in sentences; [] where nothing is known of
    it."""
    count, groups = found["num_test_images"], found.get("num_test_groups")
    seen, shared = found.get("num_test_images_seen"), found.get("num_groups_shared_with_training")
    sentences = []
    if seen:
        sentences.append(
            f"Not a test: {seen} of the {count} images were, by their file names, used in training "
            "or for choosing the model; the figures do not tell how it does on new images, and are "
            "too good."
        )
    if pretrained := found.get("num_test_images_pretrained_on"):
        sentences.append(
            f"Not quite a test: {pretrained} of the {count} images were, by their file names, used "
            "in the training that this one started from; the figures may be too good."
        )
    if shared:
        sentences.append(
            f"Not a test on new patients or groups: {shared} of the {groups} have images in "
            "training or validation too; the figures are probably too good."
        )
    return sentences


def confusion_table(found: dict[str, Any]) -> str:
    matrix, labels = found.get("confusion_matrix"), found.get("labels")
    if not matrix or not labels or len(labels) > 12:
        return ""
    names = [markdown(clean_text(str(label))) for label in labels]
    lines = [f"| | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for name, row in zip(names, matrix):
        lines.append(f"| **{name}** | {' | '.join(str(int(count)) for count in row)} |")
    return "\n".join(lines) + "\n"


def patients_text(found: dict[str, Any]) -> str:
    aggregated = found.get("aggregated")
    if not aggregated:
        return ""
    values, intervals = aggregated.get("metrics") or {}, aggregated.get("intervals")
    rows = metric_rows(found, values, intervals, HEADLINE)
    shown = "; ".join(f"{r['name']} {r['value']} (95 % interval {r['interval']})" for r in rows)
    shown = shown or f"not measured: {markdown(clean_text(str(aggregated.get('reason'))))}"
    how = markdown(clean_text(str(aggregated.get("method"))))
    return f"By patient or group ({how}, {aggregated.get('count')} of them): {shown}."


def calibration_facts(found: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    kept, measured = config.get("calibration"), found.get("calibration") or {}
    if not kept:
        text = "The model was not calibrated: its scores are the softmax of its logits."
    else:
        text = (
            f"Divide the logits by the temperature {number(kept.get('temperature'))} (fitted on "
            f"{markdown(clean_text(str(kept.get('fitted_on'))))}) before the softmax; "
            "`evaluate.py` and `predict.py` do (they read SSSD and ViT checkpoints, no other "
            "form), pipelines do not."
        )
    rows = [
        (name, *(number((measured.get(key) or {}).get(m)) for m in ("log_loss", "brier", "ece")))
        for name, key in (("as the pipeline's", "uncalibrated"), ("calibrated", "calibrated"))
        if measured.get(key)
    ]
    return {"calibration": text, "calibration_rows": rows}


def operating_facts(found: dict[str, Any]) -> dict[str, Any]:
    point = found.get("operating_point")
    if not point:
        return {
            "operating_point": "None was chosen: the class of the highest score is decided for.",
            "operating_rows": [],
        }
    rule, fitted = (markdown(clean_text(str(point.get(k)))) for k in ("rule", "fitted_on"))
    text = (
        f"Positive from a calibrated probability of {number(point.get('threshold'))} on (rule: "
        f"{rule}; fitted on {fitted}"
        + (", not on the test images)." if found.get("num_test_images_seen") == 0 else ").")
    )
    keys = ("accuracy", "balanced_accuracy", "recall", "specificity", "precision", "f1")
    rows = metric_rows(found, point.get("metrics") or {}, point.get("intervals"), keys)
    return {"operating_point": text, "operating_rows": rows}


def subgroup_facts(column: str, values: dict[str, Any]) -> dict[str, Any]:
    """A column's subgroups as rows; those marked small are counted alone: their figures say little,
    and they may be single patients."""
    worst = values.get("worst") or {}
    metric = worst.get("metric") or "balanced_accuracy"
    share = METRICS.get(metric, ("", False))[1]
    shown = {n: v for n, v in values["subgroups"].items() if not v.get("small")}
    rows = [
        (
            markdown(clean_text(str(name))),
            group.get("num_images"),
            group.get("num_groups") if group.get("num_groups") is not None else "",
            number((group.get("metrics") or {}).get(metric), share),
            interval_text((group.get("intervals") or {}).get(metric), share),
        )
        for name, group in shown.items()
    ]
    return {
        "name": markdown(clean_text(column)),
        "metric": METRICS.get(metric, (markdown(metric),))[0],
        "worst": markdown(clean_text(str(worst["value"]))) if worst.get("value") else "",
        "rows": rows,
        "left_out": len(values["subgroups"]) - len(shown),
    }


def audit_facts(audit: dict[str, Any]) -> dict[str, Any]:
    """audit.json without the files that its findings name."""
    findings = [f for f in audit.get("findings") or [] if isinstance(f, dict)]
    critical = sum(one.get("severity") == "critical" for one in findings)
    count = f"{len(findings)} thing" + ("" if len(findings) == 1 else "s")
    summary = f"{count}, {critical} of them critical" if findings else "nothing"
    texts = [
        {key: markdown(clean_text(str(one.get(key, "")))) for key in ("severity", "kind", "text")}
        for one in findings
    ]
    return {"summary": summary, "findings": texts}


def preparation_text(config: dict[str, Any]) -> str:
    """How an image becomes the model's input."""
    prepared = config.get("preparation") or {}
    parts = [{"squash": "squashed to the model's size", None: "squashed to the model's size",
              "letterbox": "letterboxed", "center_crop": "cropped in the middle"}.get(
                  prepared.get("resize_mode"), "resized")]  # fmt: skip
    if prepared.get("windows"):
        shown = ", ".join(f"{centre:g}/{width:g}" for centre, width in prepared["windows"])
        parts.append(f"windows {shown} HU")
    if prepared.get("slice_axis", "axial") != "axial":
        parts.append(f"{prepared['slice_axis']} slices")
    return ", ".join(parts)


def stage_facts(
    stage: str, results: dict[str, Any], recipe: dict[str, Any], watts: float | None
) -> dict[str, Any]:
    """Recipe, hardware, time and energy of a training."""
    rows = [
        (name.replace("_", " "), markdown(clean_text(str(recipe[name]))))
        for name in RECIPE_ROWS
        if recipe.get(name) not in (None, 0.0, "none") or (name == "seed" and name in recipe)
    ]
    title = {"pretrain": "Pretraining", "finetune": "Fine-tuning"}[stage]
    what = {
        "pretrain": "masked autoencoding with self-distillation, on training images alone, "
        "without labels",
        "finetune": "a classifier, trained on training images; "
        + (
            "nothing was chosen on the way"
            if results.get("chosen_by") == "last" and not recipe.get("early_stopping_patience")
            else "what was chosen was chosen on validation images"
        ),
    }[stage]
    steps, seconds = results.get("train_steps"), results.get("train_runtime")
    if steps:
        rows.insert(0, ("steps", str(steps)))
    if isinstance(results.get("learning_rate_peak"), float):
        rows.insert(1, ("peak learning rate", f"{results['learning_rate_peak']:g}"))
    hardware = results.get("hardware") or {}
    rows.append(("hardware", markdown(hardware_text(hardware))))
    if isinstance(seconds, (int, float)):
        rows.append(("time", f"{seconds / 60:.1f} minutes"))
        rows.append(("energy", energy_text(seconds, hardware, watts)))
    versions = results.get("versions") or {}
    shown = ", ".join(f"{k} {v}" for k, v in versions.items() if k != "finished")
    if shown:
        rows.append(("versions", markdown(clean_text(shown))))
    return {"title": title, "text": what + ".", "rows": rows}


def hardware_text(hardware: dict[str, Any]) -> str:
    if not hardware:
        return "not recorded"
    count, kind = hardware.get("processes", 1), hardware.get("device", "cpu")
    name = clean_text(str(hardware.get("name") or kind))
    precision = clean_text(str(hardware.get("precision") or ""))
    computed = f", computed in {PRECISIONS.get(precision, precision)}" if precision else ""
    if kind == "cpu":
        return f"{name}, {count} process(es) of {hardware.get('threads', '?')} thread(s){computed}"
    return f"{count} x {name}{computed}"


def energy_text(seconds: float, hardware: dict[str, Any], watts: float | None) -> str:
    """Time times power; not measured, and the assumption said."""
    hours, kind = seconds / 3600, hardware.get("device")
    if watts is None and kind not in WATTS:
        return "not estimated: the hardware is not recorded"
    if watts is not None:
        assumed, power = f"{watts:g} W, as the author gave it", watts
    else:
        units = hardware.get("processes", 1)
        units *= hardware.get("threads", 1) if kind == "cpu" else 1
        power = WATTS[kind] * units
        each = "thread" if kind == "cpu" else "device"
        assumed = f"{power:g} W, an assumption of {WATTS[kind]:g} W a {each}"
    return f"about {power * hours / 1000:.2g} kWh (not measured: time x {assumed})"
