"""The card of a study's recipe: what models made by it are worth, as means over all of its runs."""

from pathlib import Path
from typing import Any

import yaml

from ..hub.card_rules import check_card
from ..hub.card_text import (
    EVERY_CARD,
    METRICS,
    classes_meant,
    fenced,
    markdown,
    number,
)
from ..hub.cards import TAGS
from .study_tables import (
    accuracy_interval,
    accuracy_text,
    area_text,
    count_range,
    interval,
    runs_text,
    summary_line,
)

TEMPLATE = Path(__file__).with_name("study_card.md")
HEADLINE = (runs_text, accuracy_text, accuracy_interval, area_text)
INTERVALS = (
    "95 % percentile bootstrap of groups (of images where there are none), each drawn "
    "in all runs or in none. They say how a mean would vary with other test groups, the trained "
    "models unchanged; the spread over runs says what other draws or seeds do."
)


def main_row(protocol: dict[str, Any], main: str) -> dict[str, Any] | None:
    """The main variant's row of a protocol."""
    return next((row for row in protocol["rows"] if row["variant"] == main), None)


def _counts(protocol: dict[str, Any], group: str | None) -> str:
    """ "543 images trained on; 203 tested, of 95 groups (patient_id)"; `group`: their column."""
    text = f"{count_range(protocol['num_train_images'])} images trained on; "
    text += f"{count_range(protocol['num_test_images'])} tested"
    groups = protocol.get("num_test_groups")
    return text + (f", of {count_range(groups)} groups ({markdown(group)})" if groups else "")


def _metric_rows(protocol: dict[str, Any], row: dict[str, Any]) -> list[tuple[str, ...]]:
    """Name, mean, range over runs and interval of the mean, of every metric."""
    meant, rows = classes_meant(protocol), []
    for key, (name, share) in METRICS.items():
        found = row["metrics"].get(key)
        if found is not None:
            scale, form = (100, ".1f") if share else (1, ".3f")
            ends = [
                interval(found[a], found[b], form, scale)
                for a, b in (("min", "max"), ("low", "high"))
            ]
            rows.append((name + meant.get(key, ""), number(found["mean"], share), *ends))
    return rows


def _times(rows: list[tuple[dict, dict]]) -> str:
    """How long a run took, on which processors."""
    words = {"pretrain": "pretraining", "finetune": "fine-tuning"}
    lines = []
    for protocol, row in rows:
        for part in row["trainings"]:
            minutes = " and ".join(
                f"{count_range(ends)} minutes of {words.get(stage, stage)}"
                for stage, ends in part["minutes"].items()
            )
            title, place = markdown(protocol["title"]), markdown(part["hardware"])
            lines.append(f"- {title}: {minutes} a run on {place} ({part['runs']} of the runs).")
    return "\n".join(lines)


def _results(data: str, rows: list[tuple[dict, dict]]) -> list[Any]:
    """Accuracy and AUC of each protocol, as `EvalResult`s."""
    from huggingface_hub import EvalResult

    results = []
    for protocol, row in rows:
        for key in ("accuracy", "roc_auc"):
            found = row["metrics"][key]
            if found["mean"] is None:
                continue
            arguments = {
                "runs": runs_text(row),
                "standard_deviation_over_runs": found["std"],
                "interval": None if found["low"] is None else [found["low"], found["high"]],
            }
            results.append(
                EvalResult(
                    task_type="image-classification",
                    task_name="Image classification",
                    dataset_type="imagefolder",
                    dataset_name=f"{data}, {protocol['title']}",
                    metric_type=key,
                    metric_name=METRICS[key][0],
                    metric_value=round(found["mean"], 4),
                    metric_args={k: v for k, v in arguments.items() if v is not None},
                )
            )
    return results


def _limits(rows: list[tuple[dict, dict]]) -> list[str]:
    limits = [
        "The figures in the tables are on images of the same collection. What is known of another "
        "one stands with the data.",
        "Not evaluated by subgroup: how the figures differ by age, sex, device or hospital is "
        "unknown.",
        "The figures are of scores as they are, which are not to be read as probabilities.",
    ]
    unfinished = [markdown(p["title"]) for p, row in rows if row["runs"] < row["planned"]]
    if unfinished:
        limits.append(f"Not all planned runs were done: {'; '.join(unfinished)}.")
    return limits


def study_card(summary: dict[str, Any], recipe: Path) -> str:
    """The text of the card.

    Args:
        summary: of `study_summary.summarise_study`.
        recipe: the recipe's file; its plan may have `notes`, sentences on the data.

    Raises:
        ValueError: the main variant has no record; the Hub would refuse the card's metadata.
    """
    from huggingface_hub import ModelCard, ModelCardData

    main = summary["main"]
    pairs = [(protocol, main_row(protocol, main)) for protocol in summary["protocols"]]
    rows = [(protocol, row) for protocol, row in pairs if row is not None]
    if not rows:
        raise ValueError(
            f"{summary['study']}: there is no record of {main}, expected at least one."
        )
    # the others are the same runs, without some of the images
    judged = [(protocol, row) for protocol, row in rows if not protocol["num_left_out"]]
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    notes = content.pop("reproduce").get("notes", [])
    labels = rows[0][0]["labels"]
    results = _results(summary["data"], judged)
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=list(TAGS),
        metrics=sorted({result.metric_type for result in results}),
        model_name=summary["study"],
        eval_results=results,
    )
    options = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
    card = ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        title=markdown(summary["study"]),
        data=markdown(summary["data"]),
        main_title=rows[0][1]["title"],
        headline=[
            [protocol["title"], *(text(row) for text in HEADLINE)] for protocol, row in rows
        ],
        labels=", ".join(map(markdown, labels)),
        positive=markdown(labels[1]) if len(labels) == 2 else "",
        protocols=[
            {
                "title": protocol["title"],
                "counts": _counts(protocol, content["common"].get("group_column_name")),
                "lines": [summary_line(each) for each in protocol["rows"]],
                "runs": f"{row['runs']} runs" if row and row["runs"] > 1 else "one run",
                "metrics": _metric_rows(protocol, row) if row else [],
            }
            for protocol, row in pairs
        ],
        notes=[markdown(note) for note in notes],
        times=_times(judged),
        recipe=fenced(options.strip(), "yaml"),
        interval_method=INTERVALS,
        limits=_limits(judged),
        commands=fenced(
            f"python scripts/reproduce.py --recipe recipes/{recipe.name} --data_dir DATA \\\n"
            f"    --variants {main} --results_dir runs/results",
            "sh",
        ),
        **EVERY_CARD,
    )  # fmt: skip
    check_card(str(card))
    return str(card)
