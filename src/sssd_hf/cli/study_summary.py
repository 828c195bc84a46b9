"""The figures of a study, from the records of its runs and nothing else.

records -> `summarise_study`, numbers alone -> its tables (`study_tables`), its card
(`study_cards`) and the README's main results (`readme`).
"""

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

from ..evaluation.metrics import to_json
from ..evaluation.studies import adjust, compare_runs, summarise_runs
from ..hub.card_text import PRECISIONS
from .study_records import differences, digest, draw_of, read_records

Records = dict[tuple[str, int], dict[str, Any]]
COMPARED = ("accuracy", "roc_auc")


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


def check_images(parts: dict[str, Records]) -> None:
    """
    Raises:
        ValueError: two records of one split were not tested on the same images with the same
            labels, or not trained on as many: the data set has changed between them.
    """
    seen: dict[tuple[str, str], tuple[str, Any]] = {}
    for variant, records in parts.items():
        for (split, seed), record in records.items():
            tested = sorted(zip(record["images"], record["truth"]))
            # baselines do without validation images, which models choose by
            learner = "baseline" if "baseline" in record["options"] else "model"
            facts = {"tested": (tested, record["labels"]), learner: record["num_train_images"]}
            for kind, own in facts.items():
                first, found = seen.setdefault((split, kind), (f"{variant}, seed {seed}", own))
                if own != found:
                    raise ValueError(
                        f"{split}: the records of {first} and {variant}, seed {seed} are of other "
                        "images or labels: the data were changed between them. Delete the records "
                        "of the older ones, so that the runs are done again."
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


def hardware_name(record: dict[str, Any]) -> str:
    """The processor of a run, and the precision that it trained in where that was recorded."""
    hardware = record["hardware"]
    if isinstance(hardware, str):
        return hardware
    precision = hardware.get("precision")
    name = hardware["name"]
    return f"{name}, {PRECISIONS.get(precision, precision)}" if precision else name


def summarise_trainings(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs by the processor and precision they were trained on, and the minutes of each stage, from
    least to most over the runs."""
    places = dict.fromkeys(hardware_name(record) for record in records)
    trainings = []
    for place in places:
        minutes = [record["minutes"] for record in records if hardware_name(record) == place]
        ends = {
            stage: [min(each[stage] for each in minutes), max(each[stage] for each in minutes)]
            for stage in minutes[0]
        }
        trainings.append({"hardware": place, "runs": len(minutes), "minutes": ends})
    return trainings


def summarise_row(records: Records, places: list[tuple[str, int]]) -> dict[str, Any]:
    """Of one method: how many of the planned runs there are, and each metric's mean, spread and
    interval over them (`summarise_runs`), and how long they took."""
    one_split = len({split for split, _ in records}) == 1 < len(records)
    metrics = summarise_runs([draw_of(record) for record in records.values()])
    return {
        "runs": len(records),
        "planned": len(places),
        # in which nothing is by chance
        "seeds_agree": one_split and all(metrics[n]["min"] == metrics[n]["max"] for n in COMPARED),
        "trainings": summarise_trainings(list(records.values())),
        "metrics": metrics,
    }


def summarise_differences(
    parts: dict[str, Records], places: list[tuple[str, int]], main: str
) -> list[dict[str, Any]]:
    """`main` less each method that was run on some of its splits and seeds, in pairs: the two
    judgements of `compare_runs` of each of `COMPARED`, with p-values adjusted over the methods."""
    others, found = [], []
    for variant, records in parts.items():
        both = [p for p in places if p in records and p in parts[main]]
        if variant == main or not both:
            continue
        others.append({"first": main, "second": variant, "pairs": len(both)})
        found.append(
            compare_runs(*([draw_of(part[p]) for p in both] for part in (parts[main], records)))
        )
    if found:
        for metric in COMPARED:
            adjust(found, metric)
    return [
        {**names, **{metric: comparison[metric] for metric in COMPARED}}
        for names, comparison in zip(others, found)
    ]


def tested(records: Records) -> dict[str, Any]:
    """How many images and groups were trained on and tested, from least to most over the runs."""
    counts = {
        "num_train_images": [record["num_train_images"] for record in records.values()],
        "num_test_images": [len(record["images"]) for record in records.values()],
    }
    if all(record["groups"] for record in records.values()):
        counts["num_test_groups"] = [len(set(record["groups"])) for record in records.values()]
    return {name: [min(values), max(values)] for name, values in counts.items()}


def summarise_study(results_dir: Path, name: str, plan: dict[str, Any]) -> dict[str, Any]:
    """All figures of a study, as JSON has them.

    Args:
        name: of the study: its folder in `results_dir`.
        plan: the recipe's section "reproduce": data, protocols (name -> {title, columns, seeds},
            and `without`, file names of test images that are not judged),
            variants (name -> {title}); the first variant is the main one.

    Returns study, data, main (the first variant), protocols: those that have records, in the
    plan's order, each with its name, title, num_left_out, labels (the second of two is the
    positive one), `tested`, rows (one a method, `summarise_row`), differences
    (`summarise_differences`), and revisions: how many runs with which revision of the code.

    Raises:
        ValueError: as `check_images`, `check_agreement` and `without`.
    """
    study = read_records(results_dir, name)
    variants = {key: value or {} for key, value in plan["variants"].items()}
    main = next(iter(variants))
    protocols = []
    for key, protocol in plan["protocols"].items():
        places = planned(protocol)
        parts = {v: _part(study.get(v, {}), places, protocol, plan["data"]) for v in variants}
        parts = {variant: part for variant, part in parts.items() if part}
        if not parts:
            continue
        check_images(parts)
        for variant, part in parts.items():
            check_agreement(variant, part)
        rows = [
            {
                "variant": variant,
                "title": variants[variant].get("title", variant),
                "baseline": variants[variant].get("baseline", ""),
                **summarise_row(part, places),
            }
            for variant, part in parts.items()
        ]
        everything = [record for part in parts.values() for record in part.values()]
        protocols.append({
            "name": key,
            "title": protocol["title"],
            "num_left_out": len(protocol.get("without", ())),
            "labels": everything[0]["labels"],
            **tested(parts.get(main) or next(iter(parts.values()))),
            "rows": rows,
            "differences": summarise_differences(parts, places, main) if main in parts else [],
            "revisions": dict(sorted(Counter(r["revision"] for r in everything).items())),
        })  # fmt: skip
    return to_json({"study": name, "data": plan["data"], "main": main, "protocols": protocols})
