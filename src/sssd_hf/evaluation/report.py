"""One self-contained HTML page of all that is known of an evaluated model.

Tables are made here and laid out by templates/report.html; the sentences of the summary are in
`plain_language`, the checklists in `checklists`, and what is read from where in `run_files`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sssd_hf.evaluation import checklists, plain_language
from sssd_hf.evaluation.figures import METRIC_NAMES
from sssd_hf.evaluation.metrics import LOWER_IS_BETTER
from sssd_hf.evaluation.plain_language import bounds, known, number, percent
from sssd_hf.evaluation.run_files import Run, read_run

RANGES = {"mcc": (-1, 1), "cohen_kappa": (-1, 1), "log_loss": None}  # else 0..1
MAX_OPTION_LENGTH = 200
EXPLANATION_FACTS = {
    "classifier_correlation": "rank correlation with maps of the classifier drawn anew",
    "all_layers_correlation": "rank correlation with maps of all weights drawn anew",
    "num_images": "images",
}
# of a training's all_results.json, and what they are called
TRAINING_FACTS = {
    "num_train_images": "training images", "epoch": "epochs", "train_runtime": "time, seconds",
    "train_images_per_second": "images a second", "num_processes": "processes",
    "learning_rate_peak": "peak learning rate", "chosen_by": "weights chosen by",
    "best_step": "best step", "best_eval_accuracy": "its accuracy on validation",
    "best_eval_roc_auc": "its ROC AUC on validation", "eval_reconstruction_loss":
    "reconstruction loss, held out", "probe_linear_accuracy": "accuracy of a linear probe",
}  # fmt: skip
# characters that have no place in a page, such as the NUL of a broken file name
CONTROLS = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 127], "�")


@dataclass(frozen=True)
class Table:
    """Cells are text, or (value, low, high) in 0..1 to be drawn as a bar with its interval; the
    columns from `numbers_from` on are set as numbers."""

    caption: str
    head: list[str]
    rows: list[list]
    note: str = ""
    numbers_from: int = 1

    @property
    def bar_column(self) -> int | None:
        """Where the bars are, if there are any; a phone has no room for them."""
        cells = (place for row in self.rows for place in enumerate(row))
        return next((column for column, cell in cells if isinstance(cell, tuple)), None)


def write_report(
    evaluation_dir, model_dir=None, pretraining_dir=None, audit=None, *, path=None
) -> Path:
    """Write report.html of an evaluation; returns its path.

    It needs no network and no script, and holds its figures. What the files do not tell is said to
    be missing or not known.

    Args:
        evaluation_dir: the --output_dir of scripts/evaluate.py (all_results.json, predictions.csv,
            figures/*.png with captions.json of `figures.write_figures`).
        model_dir: the model's folder; without, the one that all_results.json names, if at hand.
        pretraining_dir: without, the checkpoint that the model's recipe names, if at hand.
        audit: audit.json, or the --output_dir of scripts/audit.py; without, one in the folders of
            the evaluation or the model.
        path: of the report; without, report.html in evaluation_dir.

    Raises:
        ValueError: there is no all_results.json of an evaluation.
    """
    run = read_run(evaluation_dir, model_dir, pretraining_dir, audit)
    path = Path(path or run.folder / "report.html")
    draft = path.with_name(f".{path.name}.{os.getpid()}")  # the same folder: renaming is atomic
    try:
        # a file name that is no UTF-8 must not stop the report
        draft.write_text(render(run), encoding="utf-8", errors="replace")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def render(run: Run) -> str:
    """The page of a run, as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sssd_hf.evaluation"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: value.translate(CONTROLS) if isinstance(value, str) else value,
    )  # fmt: skip
    results = run.results
    answers = checklists.answers_of(run)
    return environment.get_template("report.html").render(
        run=run,
        results=results,
        notice=plain_language.NOTICE,
        summary=plain_language.summary_sentences(results, run.audit),
        key_figures=plain_language.key_figures(results),
        metrics=metrics_table(run),
        classes=classes_table(results),
        independent=independent_table(results),
        operating_point=operating_point_table(results),
        calibration=calibration_table(results),
        selective=selective_table(results),
        comparison=comparison_table(results),
        subgroups=subgroup_tables(results),
        explanations=explanations_table(run.explanations),
        probes=probes_table(run.audit),
        audit_counts=audit_counts_table(run.audit),
        protocol=protocol_table(run),
        training=training_tables(run),
        versions=facts_table("Versions", results.get("versions")),
        checklists=[
            ("CLAIM", checklists.fill_in(checklists.CLAIM, answers)),
            ("TRIPOD+AI", checklists.fill_in(checklists.TRIPOD_AI, answers)),
        ],
        unknown=checklists.UNKNOWN,
        shows_images=[
            name
            for name in ("errors.png", "examples.png", "reconstructions.png", "pairs.png")
            if run.has_figure(name)
        ],
    )


def _bar(metric, values, intervals):
    """A value and its interval as places in 0..1 of the metric's range, or "" for no bar."""
    span = RANGES.get(metric, (0, 1))
    value, (low, high) = values.get(metric), bounds(intervals, metric)
    if span is None or not known(value):
        return ""
    start, end = span
    places = [None if v is None else (v - start) / (end - start) for v in (value, low, high)]
    return tuple(places)


def _interval(intervals, metric):
    low, high = bounds(intervals, metric)
    return "–" if low is None else f"{number(low)} to {number(high)}"


def _metric_name(metric):
    name = METRIC_NAMES.get(metric, metric)
    return name + (" (lower is better)" if metric in LOWER_IS_BETTER else "")


def metrics_table(run: Run) -> Table:
    results, whole = run.results, run.results.get("aggregated") or {}
    unit = plain_language.unit_of(results)
    head = ["", "images", "95 % interval", ""]
    if "metrics" in whole:
        head += [unit, "95 % interval"]
    rows = []
    for metric in METRIC_NAMES:
        if metric not in results:
            continue
        intervals = results.get("intervals")
        row = [_metric_name(metric), number(results[metric]), _interval(intervals, metric)]
        row.append(_bar(metric, results, intervals))
        if "metrics" in whole:
            row.append(number(whole["metrics"].get(metric)))
            row.append(_interval(whole.get("intervals"), metric))
        rows.append(row)
    reasons = results.get("reasons") or {}
    why = "; ".join(f"{_metric_name(k)}: {v}" for k, v in reasons.items() if "/" not in k)
    note = f"Intervals: {results.get('interval_method', 'how they were made is not known')}."
    note += " The ECE has none: resampling raises it."
    if "metrics" in whole:
        note += f" The probabilities of each of {whole['count']} {unit} are the {whole['method']}"
        note += f" of those of its images, {whole.get('probabilities', '')}."
    if why:
        note += f" Undefined: {why}."
    return Table("Figures of merit on the test split", head, rows, note)


def classes_table(results: dict) -> Table | None:
    classes = results.get("per_class")
    if not classes:
        return None
    columns = [name for name in next(iter(classes.values())) if name != "support"]
    head = ["class", "images", *(METRIC_NAMES.get(name, name) for name in columns)]
    rows = [
        [name, str(row["support"]), *(number(row[column]) for column in columns)]
        for name, row in classes.items()
    ]
    for kind in ("macro", "weighted"):
        if results.get(kind):
            mean = [number(results[kind].get(column)) for column in columns]
            rows.append([f"mean ({kind})", "", *mean])
    return Table(
        "Each class against the rest", head, rows, "Of the most probable class, without threshold."
    )


def independent_table(results: dict) -> Table | None:
    found = results.get("independent_images")
    if not found:
        return None
    rows = [
        [f"{METRIC_NAMES.get(metric, metric)} (Wilson)", _interval(found["wilson"], metric)]
        for metric in found.get("wilson") or {}
    ]
    if found.get("delong"):
        rows.append(["ROC AUC (DeLong)", _interval({"roc_auc": _ends(found["delong"])}, "roc_auc")])
    return Table(
        "Intervals that take images for independent",
        ["", "95 % interval"],
        rows,
        "For comparison with reports that use them. Too narrow where a patient has several images.",
    )


def _ends(row):
    return row.get("low"), row.get("high")


def operating_point_table(results: dict) -> Table | None:
    point = results.get("operating_point")
    if not point:
        return None
    name = point.get("positive_label") or results.get("positive_label")
    rows = [
        [
            _metric_name(metric), number(value), _interval(point.get("intervals"), metric),
            _bar(metric, point["metrics"], point.get("intervals")),
        ]
        for metric, value in point["metrics"].items()
    ]  # fmt: skip
    return Table(
        f"Decisions at the threshold {number(point['threshold'])} for {name}",
        ["", "images", "95 % interval", ""],
        rows,
        f"Chosen by the rule “{point['rule']}” on {point['fitted_on']}"
        + (", not on the test." if results.get("num_test_images_seen") == 0 else "."),
    )


def calibration_table(results: dict) -> Table | None:
    found = results.get("calibration")
    if not found:
        return None
    before, after, used = found["uncalibrated"], found["calibrated"], found.get("used") or {}
    rows = [[_metric_name(name), number(before[name]), number(after.get(name))] for name in before]
    return Table(
        "Probabilities before and after calibration",
        ["", "before", "after"],
        rows,
        f"Temperature {number(used.get('temperature'))}, fitted on {used.get('fitted_on')}.",
    )


def selective_table(results: dict) -> Table | None:
    found = results.get("selective")
    if not found:
        return None
    sure = found.get("confidence_at") or {}
    rows = [
        [percent(float(share)), percent(accuracy), number(sure.get(share))]
        for share, accuracy in found["accuracy_at"].items()
    ]
    return Table(
        "Accuracy where the model answers only for the images it is most sure of",
        ["answered", "accuracy of these", "from a confidence of"],
        rows,
        f"Area under the curve of accuracy by coverage: {number(found.get('area'))}.",
    )


def comparison_table(results: dict) -> Table | None:
    found = results.get("comparison")
    if not found:
        return None
    rows = [
        [
            _metric_name(metric), number(row["a"]), number(row["b"]), f"{row['difference']:+.3f}"
            if known(row["difference"]) else "–",
            f"{row['low']:+.3f} to {row['high']:+.3f}" if known(row["low"]) else "–",
            _p_value(row["p"]),
        ]
        for metric, row in found["metrics"].items()
    ]  # fmt: skip
    independent = found.get("independent_images") or {}
    note = "Both models on the same draws of the bootstrap; p is not corrected for several tests."
    if independent.get("mcnemar"):
        note += f" McNemar (mid-p): p {_p_value(independent['mcnemar'].get('p_mid'))}"
        if independent.get("delong"):
            note += f", DeLong: p {_p_value(independent['delong'].get('p'))}"
        note += "; these take images for independent."
    other = results.get("compared_with") or "another model"
    return Table(
        f"Against {other}, on the same images",
        ["", "this", "other", "difference", "95 % interval", "p"],
        rows,
        note,
    )


def _p_value(p):
    return "< 0.001" if known(p) and p < 0.001 else number(p)


def subgroup_tables(results: dict) -> list[Table]:
    tables = []
    shown = ("accuracy", "balanced_accuracy", "roc_auc", "recall", "specificity")
    for column, found in (results.get("subgroups") or {}).items():
        rows = []
        for value, part in found["subgroups"].items():
            units = part.get("num_groups")
            row = [value + (" (few)" if part["small"] else ""), str(part["num_images"])]
            row.append("–" if units is None else str(units))
            for metric in shown:
                low, high = bounds(part.get("intervals"), metric)
                interval = "" if low is None else f" ({number(low, 2)}–{number(high, 2)})"
                row.append(number(part["metrics"].get(metric), 2) + interval)
            rows.append(row)
        unit = plain_language.unit_of(results)
        head = [column, "images", unit, *(METRIC_NAMES[metric] for metric in shown)]
        tables.append(Table(f"By {column}", head, rows, "95 % intervals in brackets."))
    return tables


def probes_table(audit: dict | None) -> Table | None:
    """What the audit's simple classifiers reach."""
    probes = (audit or {}).get("shortcuts") or {}
    if "files" not in probes or "thumbnails" not in probes:
        return None
    files, pictures = probes["files"], probes["thumbnails"]
    rows = [["most frequent class of training", percent(files["majority_accuracy"]), "–"]]
    for name, values, key in (
        ("thumbnails, ridge", pictures, "ridge"),
        ("thumbnails, nearest neighbour", pictures, "nearest_neighbor"),
        ("facts of the files, logistic regression", files, "logistic"),
        ("facts of the files, forest", files, "forest"),
    ):
        rows.append([name, percent(values[f"{key}_accuracy"]), number(values.get(f"{key}_auc"))])
    rows += [[f"{fact} alone", percent(value), "–"] for fact, value in files["each"].items()]
    return Table(
        "What can be told without medicine", ["", "accuracy", "ROC AUC"], rows,
        f"From {probes['num_train']} training to {probes['num_test']} images of {probes['part']}.",
    )  # fmt: skip


def audit_counts_table(audit: dict | None) -> Table | None:
    counts = (audit or {}).get("images")
    if not counts:
        return None
    names = sorted({name for part in counts.values() for name in part})
    rows = [[part, *(str(row.get(name, 0)) for name in names)] for part, row in counts.items()]
    return Table("Images by split and class", ["split", *names], rows)


def protocol_table(run: Run) -> Table:
    results = run.results
    reads = results.get("times_test_was_read")
    rows = [
        ["Test split", f"“{results.get('test_split', 'test')}”, {results['num_test_images']} "
         "images"],
        ["Splits", f"{run.split_rule()} {run.counts_sentence()}"],
        ["Groups kept together", run.together_sentence()],
        ["Shared by splits", run.leakage_sentence()],
        ["Weights", run.selection_sentence()],
        ["Threshold and temperature", _fitted_on(results)],
        ["Test split read", _times(reads)],
        ["Intervals", results.get("interval_method") or "not known"],
    ]  # fmt: skip
    return Table("How it was tested", ["", ""], rows, numbers_from=2)


def _fitted_on(results):
    used = (results.get("calibration") or {}).get("used")
    if not used:
        return "none were fitted"
    return f"fitted on {used.get('fitted_on')}; rule of the threshold: {used.get('rule')}"


def _times(reads) -> str:
    if not known(reads):
        return "not known how often"
    often = "once, now" if reads == 1 else f"{reads} times, this one included"
    return f"{often} (by this model; what others read is not known)"


def training_tables(run: Run) -> list[Table]:
    """Facts and options of pretraining and fine-tuning, as far as they are known."""
    tables = []
    for title, values, recipe in (
        ("Pretraining", run.pretraining, run.pretraining_recipe),
        ("Fine-tuning", run.training, run.recipe),
    ):
        if values:
            facts = {told: values[name] for name, told in TRAINING_FACTS.items() if name in values}
            tables.append(facts_table(f"{title}: what happened", facts))
        if recipe:
            # most options are off; what they are by default says the README
            used = {k: v for k, v in recipe.items() if v is not None and v is not False and v != 0}
            tables.append(facts_table(f"{title}: options that are set", used))
    return [table for table in tables if table]


def explanations_table(check: dict | None) -> Table | None:
    """What `explanations.randomisation_check` gives, or any plain dict."""
    named = {EXPLANATION_FACTS.get(name, name): value for name, value in (check or {}).items()}
    return facts_table("Check of the explanations", named)


def facts_table(title: str, facts: dict | None) -> Table | None:
    """A plain dict as two columns; None where there is nothing in it."""
    rows = [[str(name), _plain(value)] for name, value in (facts or {}).items()]
    return Table(title, ["", ""], rows, numbers_from=2) if rows else None


def _plain(value):
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        value = "; ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    text = str(value)
    return text if len(text) <= MAX_OPTION_LENGTH else text[: MAX_OPTION_LENGTH - 1] + "…"
