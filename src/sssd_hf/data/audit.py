"""What is wrong with a data set and its splits: leaks, contradictions, bad files, classes.

`inspect_images` opens every image once and `audit_images` judges. `audit_summary` is the part that
needs no decoding, for the start of a training. Findings come worst first.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .copies import (
    Pair,
    copies_by_digest,
    copies_by_pixels,
    find_conflicts,
    find_leaks,
    find_repeats,
    sort_pairs,
)
from .duplicates import MAX_DISTANCE, MIN_CORRELATION, SIDE, is_blank
from .files import ImageError, Source
from .findings import (
    MAX_EXAMPLES,
    SEEN,
    Catalogue,
    Finding,
    leak_severity,
    share_text,
    sort_findings,
)
from .isolation import inspect_all
from .preparation import Preparation
from .sources import column_texts, image_sources

FEW_IMAGES = 10  # of a class in validation or test: one image is 10 points of its recall
RARE_CLASS = 0.1  # share of the training images
SHIFT = 0.1  # of a class's share between training and another part


@dataclass(frozen=True)
class Inspection:
    """The images that can be read, by position among the sources, and the others."""

    positions: np.ndarray  # int64 (images,)
    facts: list[dict[str, Any]]  # see `facts.read_facts`
    thumbnails: np.ndarray  # uint8 (images, 64, 64), grey
    errors: dict[int, str]  # position -> what is wrong with the file


def inspect_images(
    sources: Sequence[Source], preparation: Preparation | None = None, workers: int | None = None
) -> Inspection:
    """Facts and thumbnails, each image decoded once, in child processes.

    Args:
        sources: see `sources.image_sources`.
        preparation: how DICOM and NIfTI become grey levels (one window); None: the defaults.
        workers: see `isolation.decode_all`.
    """
    from tqdm import tqdm

    small = Preparation((SIDE, SIDE))
    if preparation is not None:
        small = replace(preparation, size=small.size, num_channels=1, resize_mode="squash")
    thumbnails = np.empty((len(sources), SIDE, SIDE), np.uint8)
    positions, facts, errors = [], [], {}
    answers = inspect_all(sources, small, workers)
    for position, answer in tqdm(answers, "look at images", len(sources), unit="image", delay=2):
        if isinstance(answer, ImageError):
            errors[position] = str(answer)
            continue
        thumbnails[len(facts)] = answer[1][0]
        positions.append(position)
        facts.append(answer[0])
    return Inspection(np.array(positions, np.int64), facts, thumbnails[: len(facts)], errors)


def audit_images(
    inspection: Inspection,
    catalogue: Catalogue,
    min_correlation: float = MIN_CORRELATION,
    max_distance: int = MAX_DISTANCE,
) -> tuple[list[Finding], list[Pair]]:
    """All findings but the shortcuts, and the pairs behind them (see `Copies.pairs`), worst first.

    Args:
        catalogue: of the sources that were inspected, in their order.
        min_correlation, max_distance: see `near_pairs`.
    """
    copies = copies_by_pixels(
        inspection.positions,
        [facts["pixel_digest"] for facts in inspection.facts],
        inspection.thumbnails,
        catalogue,
        min_correlation,
        max_distance,
    )
    findings = [
        *find_shared_groups(catalogue),
        *find_leaks(copies, catalogue),
        *find_conflicts(copies, catalogue),
        *find_unreadable(inspection, catalogue),
        *find_class_imbalance(catalogue),
        *find_repeats(copies, catalogue),
    ]
    return sort_findings(findings), sort_pairs(copies.pairs, catalogue)


def audit_summary(
    dataset: Any,
    splits: dict[str, list[int]],
    group_column_name: str | None = None,
    max_bytes: int = 2**31,
) -> list[Finding]:
    """What can be found without decoding: groups in several splits, files of the same bytes in
    different splits or with different labels, the balance of the classes.

    Args:
        dataset: see `sources.load_images`.
        splits: row indices by part, see `splits.make_splits`.
        max_bytes: files are compared up to this sum of their sizes; reading takes the time.
    """
    rows = [row for part_rows in splits.values() for row in part_rows]
    selected = dataset.select(rows)
    catalogue = catalogue_of(dataset, splits, group_column_name)
    # a Hub's images lie in the table: they are taken one after the other, not all at once
    slices = "frame" in selected.column_names
    digests = file_digests(image_sources(selected) if slices else selected["image"], max_bytes)
    copies = copies_by_digest(digests, catalogue)
    return sort_findings(
        [
            *find_shared_groups(catalogue),
            *find_leaks(copies, catalogue),
            *find_conflicts(copies, catalogue),
            *find_class_imbalance(catalogue),
        ]
    )


def catalogue_of(
    dataset: Any, splits: dict[str, list[int]], group_column_name: str | None = None
) -> Catalogue:
    """The images of all splits, one split after the other.

    Raises:
        ValueError: the column is missing or has empty cells.
    """
    selected = dataset.select([row for rows in splits.values() for row in rows])
    labels = groups = None
    if "label" in dataset.column_names:
        names = dataset.features["label"].names
        labels = [names[label] for label in selected["label"][:]]
    if group_column_name is not None:
        groups = column_texts(selected, group_column_name, "--group_column_name")
    parts = [part for part, rows in splits.items() for _ in rows]
    return Catalogue(selected["file_name"][:], parts, labels, groups)


def file_digests(sources: Iterable[Source], max_bytes: int = 2**31) -> list[str | None]:
    """SHA-256 of each file's bytes; None for slices of a volume, for what can't be read (which is
    reported when it is decoded), and for what comes after `max_bytes`."""
    digests, total = [], 0
    for source in sources:
        source = source if isinstance(source, dict) else {"path": source}
        data, path = source.get("bytes"), source.get("path")
        digest = None
        if source.get("frame") is None and total <= max_bytes:
            if data is not None:
                total += len(data)
                digest = hashlib.sha256(data).hexdigest()
            elif path and os.path.isfile(path):  # opening a pipe would wait for ever
                try:
                    with open(path, "rb") as stream:
                        digest = hashlib.file_digest(stream, "sha256").hexdigest()
                        total += stream.tell()
                except OSError:
                    pass
        digests.append(digest)
    return digests


def find_unreadable(inspection: Inspection, catalogue: Catalogue) -> list[Finding]:
    """Files that can't be read, and images that show nothing."""
    findings = []
    total, errors = len(catalogue.names), inspection.errors
    if errors:
        findings.append(
            Finding(
                "unreadable",
                "warning",
                f"{share_text(len(errors), total)} images cannot be read.",
                "Copy these files again or remove them; --skip_bad_files true trains without them.",
                [f"{catalogue.describe(i)}: {errors[i]}" for i in list(errors)[:MAX_EXAMPLES]],
                {"images": len(errors)},
            )
        )
    blank = np.flatnonzero(is_blank(inspection.thumbnails))
    if len(blank):
        findings.append(
            Finding(
                "unreadable",
                "note",
                f"{share_text(len(blank), total)} images are blank, of one grey level throughout.",
                "Remove them: they show nothing, and their labels teach nothing.",
                [catalogue.describe(inspection.positions[i]) for i in blank[:MAX_EXAMPLES]],
                {"blank_images": len(blank)},
            )
        )
    return findings


def find_shared_groups(catalogue: Catalogue) -> list[Finding]:
    """Groups of a part that were seen before it."""
    groups, parts = catalogue.groups, catalogue.parts
    if groups is None:
        return []
    findings = []
    for part, earlier in SEEN.items():
        before = {}
        for i, where in enumerate(parts):
            if where in earlier:
                before.setdefault(groups[i], i)
        inside = catalogue.in_part(part)
        shared = [i for i in inside if groups[i] in before]
        if not shared:
            continue
        first = {}
        for i in shared:
            first.setdefault(groups[i], i)
        total = len({groups[i] for i in inside})
        findings.append(
            Finding(
                "leakage",
                leak_severity(len(shared), len(inside)),
                f"{share_text(len(first), total)} groups of {part}, with "
                f"{share_text(len(shared), len(inside))} of its images, are also in "
                f"{' or '.join(p for p in earlier if p in parts)}.",
                "Split by whole groups (without --split_column, with --group_column_name), or "
                f"take these groups out of {part}: its figures tell nothing about new patients.",
                [
                    f"{catalogue.describe(i)} and {catalogue.describe(before[group])}"
                    for group, i in list(first.items())[:MAX_EXAMPLES]
                ],
                {
                    "part": part,
                    "by": "group",
                    "groups": len(first),
                    "images": len(shared),
                    "share": len(shared) / len(inside),
                },
            )
        )
    return findings


def count_classes(catalogue: Catalogue) -> dict[str, Counter]:
    """Images of each class by part, in the order train, validation, test; without labels all are
    "images"."""
    counts = {part: Counter() for part in ("train", *SEEN) if part in set(catalogue.parts)}
    for i, part in enumerate(catalogue.parts):
        counts[part]["images" if catalogue.labels is None else catalogue.labels[i]] += 1
    return counts


def find_class_imbalance(catalogue: Catalogue) -> list[Finding]:
    """Classes that are missing, few, rare, or of another share than in training."""
    if catalogue.labels is None:
        return []
    counts = count_classes(catalogue)
    names = sorted(set(catalogue.labels))
    if len(names) < 2:
        text = f"All {len(catalogue.labels)} images are of one class, {', '.join(names)}."
        advice = "A classifier needs at least two: check --label_column_name and the class folders."
        return [Finding("class_balance", "critical", text, advice)]
    train = counts.get("train", Counter())
    findings = []
    for part, here in counts.items():
        for name in names:
            count, total = here[name], here.total()
            share = count / total
            before = train[name] / train.total() if train else share
            numbers = {"part": part, "class": name, "images": count, "share": share}
            if count == 0:
                severity = "warning" if train[name] else "critical"
                text = f"The class {name} has no image in {part}."
                advice = (
                    "Split anew: a class that training lacks is never predicted, and one that a "
                    "test lacks is never judged."
                )
            elif part != "train" and count < FEW_IMAGES:
                severity = "warning"
                text = f"The class {name} has only {count} of the {total} images of {part}."
                advice = "Read figures on it with their intervals, or gather more images."
            elif part == "train" and share < RARE_CLASS:
                severity = "note"
                text = f"The class {name} is rare, {share_text(count, total)} training images."
                advice = "Judge by balanced accuracy or ROC AUC; try --class_weights balanced."
            elif abs(share - before) > SHIFT:
                severity = "note"
                text = f"The class {name} makes up {share:.1%} of {part} and {before:.1%} of train."
                advice = "Probabilities and thresholds of the training will be off here."
            else:
                continue
            findings.append(Finding("class_balance", severity, text, advice, [], numbers))
    return findings
