"""The tables of a study, in Markdown, from the records of its runs and nothing else."""

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.studies import adjust, compare_runs, summarise_runs
from .study_records import differences, digest, draw_of, read_records

Records = dict[tuple[str, int], dict[str, Any]]


def planned(protocol: dict[str, Any]) -> list[tuple[str, int]]:
    """(split, seed) of every run of a protocol: {columns, seeds}."""
    return [(column, seed) for column in protocol["columns"] for seed in protocol["seeds"]]


def _part(records: Records, places: list[tuple[str, int]], protocol: dict, data: str) -> Records:
    names = protocol.get("without", ())
    return {place: without(records[place], names, data) for place in places if place in records}


def without(record: dict[str, Any], names: list[str], data: str) -> dict[str, Any]:
    """The record without the test images of these file names.

    Raises:
        ValueError: one of them is no test image of the run.
    """
    left_out = {digest(data, name): name for name in names}
    missing = [name for key, name in left_out.items() if key not in record["images"]]
    if missing:
        raise ValueError(
            f"without: {missing[0]} is no test image of {record['variant']}, {record['split']}."
        )
    kept = [i for i, name in enumerate(record["images"]) if name not in left_out]
    parts = {
        name: record[name] and [record[name][i] for i in kept]
        for name in ("images", "groups", "truth", "probabilities")
    }
    return record | parts


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def check_images(parts: dict[str, Records]) -> None:
    """
    Raises:
        ValueError: two records of one split were not tested on the same images with the same
            labels, or not trained on as many: the data set has changed between them.
    """
    seen: dict[str, tuple[str, tuple]] = {}
    for variant, records in parts.items():
        for (split, seed), record in records.items():
            tested = sorted(zip(record["images"], record["truth"]))
            own = tested, record["labels"], record["num_train_images"]
            first, found = seen.setdefault(split, (f"{variant}, seed {seed}", own))
            if own != found:
                raise ValueError(
                    f"{split}: the records of {first} and {variant}, seed {seed} are of other "
                    "images or labels: the data were changed between them. Delete the records of "
                    "the older ones, so that the runs are done again."
                )


def check_agreement(variant: str, records: Records) -> None:
    """
    Raises:
        ValueError: records of one row of a table are not of one kind.
    """
    for places in combinations(records, 2):
        found = differences(*(records[place] for place in places))
        if found:
            names = [f"{split}, seed {seed}" for split, seed in places]
            raise ValueError(
                f"{variant}: the records of {names[0]} and {names[1]} differ, and a mean of both "
                f"would be of nothing: {'; '.join(found)}. Delete the records of the runs that "
                "are to be done again, or name another --results_dir."
            )


def revisions_line(parts: dict[str, Records]) -> list[str]:
    """Where runs of a table were done with several revisions of the code, how many with which."""
    counts = Counter(r["revision"] for records in parts.values() for r in records.values())
    if len(counts) < 2 and not any(", then " in name for name in counts):
        return []
    listed = "; ".join(
        f"{name} ({count} run{'s' if count > 1 else ''})" for name, count in sorted(counts.items())
    )
    return ["", f"Revisions of the code: {listed}."]


def _interval(low: float, high: float, form: str) -> str:
    return "-" if np.isnan(low) else f"{low:{form}} to {high:{form}}"


def summary_row(records: Records, places: list[tuple[str, int]], name: str) -> str:
    """variant, runs, accuracy with spread, its interval, AUC with spread, its interval, minutes."""
    found = summarise_runs([draw_of(record) for record in records.values()])
    accuracy, area = found["accuracy"], found["roc_auc"]
    spread = area_spread = ""
    if accuracy["std"] is not None:
        ends = f"({_percent(accuracy['min'])} to {_percent(accuracy['max'])})"
        spread, area_spread = f" ± {_percent(accuracy['std'])} {ends}", f" ± {area['std']:.3f}"
    one_split = len({split for split, _ in records}) == 1 < len(records)
    if one_split and all(each["min"] == each["max"] for each in (accuracy, area)):
        # a baseline in which nothing is by chance
        spread, area_spread = " (with every seed)", ""
    minutes = np.mean([sum(record["minutes"].values()) for record in records.values()])
    runs = f"{len(records)}" if len(records) == len(places) else f"{len(records)} of {len(places)}"
    return (
        f"| {name} | {runs} | {_percent(accuracy['mean'])}{spread} | "
        f"{_interval(100 * accuracy['low'], 100 * accuracy['high'], '.1f')} | "
        f"{area['mean']:.3f}{area_spread} | {_interval(area['low'], area['high'], '.3f')} | "
        f"{minutes:.0f} |"
    )


def comparison_rows(
    study: dict[str, Records], places: list[tuple[str, int]], main: str, metric: str
) -> list[str]:
    """A row for each variant that was run on the same splits and seeds as `main`, with p-values
    adjusted over the rows (Holm)."""
    others, found = [], []
    for variant, records in study.items():
        both = [p for p in places if p in records and p in study[main]]
        if variant == main or not both:
            continue
        pairs = [[draw_of(part[p]) for p in both] for part in (study[main], records)]
        others.append((variant, len(both)))
        found.append(compare_runs(*pairs))
    if not found:
        return []
    adjust(found, metric)
    rows, scale, digits = [], *((100, 1) if metric == "accuracy" else (1, 3))
    for (variant, count), comparison in zip(others, found):
        row = comparison[metric]
        drawn, test = row["bootstrap"], row["resampled_t"]
        cells = ["-", "-"]
        for number, part in enumerate((drawn, test)):
            if part is not None and not np.isnan(part["low"]):
                ends = _interval(scale * part["low"], scale * part["high"], f"+.{digits}f")
                cells[number] = f"{ends}, p {part['p_holm']:.2g}"
        mean = round(scale * row["mean"], digits) + 0.0  # not "-0.0"
        rows.append(
            f"| {main} - {variant} | {count} | {mean:+.{digits}f} | {cells[0]} | {cells[1]} |"
        )
    return rows


def tables(results_dir: Path, name: str, plan: dict[str, Any]) -> str:
    """All tables of a study.

    Args:
        name: of the study: its folder in `results_dir`.
        plan: the recipe's section "reproduce": data, protocols (name -> {title, columns, seeds},
            and `without`, file names of test images that are not judged),
            variants (name -> {title}); the first variant is the main one.

    Raises:
        ValueError: as `check_images`, `check_agreement` and `without`.
    """
    study = read_records(results_dir, name)
    variants = {key: value or {} for key, value in plan["variants"].items()}
    main = next(iter(variants))
    lines = []
    for protocol in plan["protocols"].values():
        places = planned(protocol)
        parts = {key: _part(study.get(key, {}), places, protocol, plan["data"]) for key in variants}
        parts = {key: part for key, part in parts.items() if part}
        if not parts:
            continue
        check_images(parts)
        for key, part in parts.items():
            check_agreement(key, part)
        lines += [
            f"**{plan['data']}, {protocol['title']}**",
            "",
            "| | runs | accuracy % ± SD (range) | 95 % interval | AUC ± SD | 95 % interval | min |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for key, part in parts.items():
            lines.append(summary_row(part, places, variants[key].get("title", key)))
        if main in parts and len(parts) > 1:
            for metric, unit in (("accuracy", "points of accuracy"), ("roc_auc", "AUC")):
                lines += [
                    "",
                    f"| difference in {unit} | pairs | mean | bootstrap of groups: interval, p "
                    "(Holm) | corrected t over draws: interval, p (Holm) |",
                    "| --- | --- | --- | --- | --- |",
                    *comparison_rows(parts, places, main, metric),
                ]
        lines += [*revisions_line(parts), ""]
    return "\n".join(lines).rstrip() + "\n"
