"""Audit of a data set and its splits, before anything is trained on them.

`python scripts/audit.py --data_dir FOLDER --split_column COLUMN --group_column_name patient_id`
opens every image once and looks for patients and copies shared by splits, copies with different
labels, bad files, missing and rare classes, and shortcuts: what file facts and thumbnails alone
tell of the label. It writes audit.txt (which it shows), audit.json and pairs.png into --output_dir.
"""

import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ..data.audit import Inspection, audit_images, catalogue_of, count_classes, inspect_images
from ..data.copies import Pair
from ..data.files import ImageError
from ..data.findings import SEEN, Catalogue, Finding, sort_findings
from ..data.isolation import decode_all
from ..data.preparation import Preparation
from ..data.sources import image_sources
from ..data.windows import parse_windows
from ..evaluation.contact_sheet import plot_pairs
from ..evaluation.shortcuts import probe_shortcuts
from . import common
from .arguments import AuditArguments, DataArguments
from .data import load_data, split_data
from .parsing import parse

SHOWN_SIDE = 160  # of an image in pairs.png, pixels


def main(argv: list[str] | None = None) -> int:
    data, arguments = parse("audit", __doc__, argv)
    output = Path(arguments.output_dir)
    dataset = load_data(data)
    splits = split_data(dataset, data, arguments.seed, None, check=False)
    rows = [row for part_rows in splits.values() for row in part_rows]
    catalogue = catalogue_of(dataset, splits, data.group_column_name)
    windows = data.window and parse_windows(data.window)[:1]
    axis = data.slice_axis or "axial"
    preparation = Preparation((SHOWN_SIDE, SHOWN_SIDE), windows=windows, slice_axis=axis)
    selected = dataset.select(rows)
    # a Hub's are read row by row: embedded images need not all be in memory
    sources = selected["image"] if data.dataset_name else image_sources(selected)
    inspection = inspect_images(sources, preparation, arguments.num_workers)
    findings, pairs = audit_images(
        inspection, catalogue, arguments.near_correlation, arguments.near_hash_distance
    )
    probes = probe(inspection, catalogue)
    findings = sort_findings([*findings, *shortcut_findings(probes)])
    failed = [one for one in findings if one.kind in arguments.kinds_to_fail_on()]

    output.mkdir(parents=True, exist_ok=True)
    report = report_text(data, catalogue, findings, probes)
    (output / "audit.txt").write_text(report, encoding="utf-8")
    result = {
        "data": data.data_dir or data.dataset_name,
        "split_column": data.split_column,
        "group_column_name": data.group_column_name,
        "test_images_digest": common.digest_of(dataset.select(splits["test"])["file_name"][:]),
        "images": {part: dict(counts) for part, counts in count_classes(catalogue).items()},
        "findings": [one.to_dict() for one in findings],
        "shortcuts": probes,
        "near_copies": {
            "min_correlation": arguments.near_correlation,
            "max_hash_distance": arguments.near_hash_distance,
        },
        "pairs": [pair_values(pair, catalogue) for pair in pairs[:1000]],
        "num_pairs": len(pairs),
        "fail_on": arguments.fail_on,
        "failed": bool(failed),
        "versions": common.versions(),
    }
    common.write_json(output / "audit.json", result)
    (output / "pairs.png").unlink(missing_ok=True)
    if pairs and arguments.max_pairs:
        draw_pairs(output / "pairs.png", pairs, catalogue, sources, preparation, arguments)
    print(report)
    print(f"written to {output}")
    if failed:
        kinds = ", ".join(sorted({one.kind for one in failed}))
        print(f"--fail_on {arguments.fail_on}: {len(failed)} findings ({kinds}): exit status 1")
    return 1 if failed else 0


def probe(inspection: Inspection, catalogue: Catalogue) -> dict[str, Any]:
    """`probe_shortcuts` from training to test, else to validation; {"skipped": why} without."""
    if catalogue.labels is None:
        return {"skipped": "the images have no labels"}
    labels = np.unique(np.array(catalogue.labels), return_inverse=True)[1][inspection.positions]
    parts = np.array(catalogue.parts)[inspection.positions]
    train = np.flatnonzero(parts == "train")
    judged = next((part for part in ("test", "validation") if (parts == part).any()), None)
    if judged is None:
        return {"skipped": "there is neither a test nor a validation split"}
    if len(set(labels[train].tolist())) < 2:
        return {"skipped": "training has fewer than two classes"}
    test = np.flatnonzero(parts == judged)
    result = probe_shortcuts(inspection.facts, inspection.thumbnails, labels, train, test)
    return {"part": judged, **result}


def shortcut_findings(probes: dict[str, Any]) -> list[Finding]:
    findings = []
    if "skipped" in probes:
        return findings
    files, pictures, part = probes["files"], probes["thumbnails"], probes["part"]
    if files["verdict"]:
        strongest = max(files["each"], key=files["each"].get)
        findings.append(
            Finding(
                "shortcut",
                files["verdict"],
                f"Facts of the files alone, pictures unseen, predict the label on {part}: "
                f"{figures(files, {'logistic': 'logistic regression', 'forest': 'forest'})}; the "
                f"majority rate is {files['majority_accuracy']:.1%}. The strongest alone: "
                f"{strongest} ({files['each'][strongest]:.1%}).",
                "Bring all images to one format, colour mode, size and aspect before training "
                "(--resize_mode letterbox or center_crop keeps the aspect from showing as a "
                "squeeze), and ask why the classes differ: they may come from different sources.",
                [],
                {name: value for name, value in files.items() if name != "verdict"},
            )
        )
    if pictures["verdict"]:
        findings.append(
            Finding(
                "shortcut",
                pictures["verdict"],
                f"Thumbnails of 16 x 16 pixels predict the label on {part}: "
                f"{figures(pictures, {'ridge': 'ridge', 'nearest_neighbor': 'nearest neighbour'})}"
                f"; the majority rate is {pictures['majority_accuracy']:.1%}.",
                "Report these beside your model's figures, which must beat them. A nearest "
                "neighbour far above ridge points to copies or patients shared by the splits.",
                [],
                {name: value for name, value in pictures.items() if name != "verdict"},
            )
        )
    return findings


def figures(result: dict[str, Any], names: dict[str, str]) -> str:
    """ "ridge 62.6 % (AUC 0.707), ..." """
    texts = []
    for key, name in names.items():
        auc = result.get(f"{key}_auc")
        texts.append(
            f"{name} {result[f'{key}_accuracy']:.1%}" + ("" if auc is None else f" (AUC {auc:.3f})")
        )
    return ", ".join(texts)


def report_text(
    data: DataArguments, catalogue: Catalogue, findings: list[Finding], probes: dict[str, Any]
) -> str:
    """What audit.txt says."""
    lines = [f"Audit of {data.data_dir or data.dataset_name}", ""]
    counts = count_classes(catalogue)
    for part, here in counts.items():
        classes = ", ".join(f"{name} {count}" for name, count in sorted(here.items()))
        detail = "" if catalogue.labels is None else f": {classes}"
        lines.append(f"{part:10s} {here.total():6d} images{detail}")
    count = Counter(one.severity for one in findings)
    total = f"{count['critical']} critical, {count['warning']} warnings, {count['note']} notes"
    lines += ["", f"{len(findings)} findings, the worst first ({total})"]
    for number, one in enumerate(findings, 1):
        lines += ["", fill(f"{number}. {one.severity.upper()}, {one.kind}: {one.text}")]
        lines += [f"     - {example}" for example in one.examples]
        lines.append(fill(f"   What to do: {one.advice}"))
    lines += ["", "Shortcuts"]
    if "skipped" in probes:
        lines.append(f"  not probed: {probes['skipped']}")
    else:
        train, test = probes["num_train"], probes["num_test"]
        lines.append(f"  from {train} training to {test} images of {probes['part']}")
        files, pictures = probes["files"], probes["thumbnails"]
        lines.append(f"  majority class          {files['majority_accuracy']:.1%}")
        named = {"logistic": "logistic regression", "forest": "forest"}
        lines.append(f"  facts of the files      {figures(files, named)}")
        each = ", ".join(f"{fact} {value:.1%}" for fact, value in files["each"].items())
        lines.append(f"  each alone, by a tree   {each}")
        named = {"ridge": "ridge", "nearest_neighbor": "nearest neighbour"}
        lines.append(f"  16 x 16 thumbnails      {figures(pictures, named)}")
    missing = not_checked(data, catalogue)
    if missing:
        lines += ["", "Not checked", *(fill(f"  {text}") for text in missing)]
    return "\n".join(lines) + "\n"


def not_checked(data: DataArguments, catalogue: Catalogue) -> list[str]:
    texts = []
    if catalogue.groups is None:
        texts.append(
            "Groups in several splits: name the column of patients by --group_column_name."
        )
    if catalogue.labels is None:
        texts.append("Labels: there are none.")
    for part in SEEN:
        if part not in catalogue.parts:
            texts.append(f"Leaks into {part}: there is no such split.")
    return texts


def fill(text: str) -> str:
    indent = " " * (3 if text[0] != " " else len(text) - len(text.lstrip()))
    return textwrap.fill(text, 100, subsequent_indent=indent, break_long_words=False)


def pair_values(pair: Pair, catalogue: Catalogue) -> dict[str, Any]:
    values: dict[str, Any] = {"exact": pair.exact, "correlation": round(pair.correlation, 4)}
    values["hash_distance"] = pair.distance
    for key, position in (("first", pair.first), ("second", pair.second)):
        values[key] = {"file_name": catalogue.names[position], "split": catalogue.parts[position]}
        if catalogue.labels is not None:
            values[key]["label"] = catalogue.labels[position]
    return values


def draw_pairs(
    path: Path,
    pairs: list[Pair],
    catalogue: Catalogue,
    sources: Any,
    preparation: Preparation,
    arguments: AuditArguments,
) -> None:
    """The worst pairs, decoded again at a size that can be looked at."""
    shown = pairs[: arguments.max_pairs]
    positions = sorted({i for pair in shown for i in (pair.first, pair.second)})
    pixels: dict[int, np.ndarray | None] = {}
    answers = decode_all([sources[i] for i in positions], preparation, arguments.num_workers)
    for n, answer in answers:
        pixels[positions[n]] = None if isinstance(answer, ImageError) else answer[0]
    captions = []
    for pair in shown:
        heading = "equal" if pair.exact else f"r {pair.correlation:.3f}, {pair.distance} bits"
        labels = catalogue.labels
        if labels is not None and labels[pair.first] != labels[pair.second]:
            heading += ": DIFFERENT LABELS"
        below = [catalogue.describe(i).replace(" (", "\n(") for i in (pair.first, pair.second)]
        captions.append((heading, *below))
    title = f"Copies: {len(shown)} of {len(pairs)} pairs, the worst first"
    plot_pairs(path, [(pixels[p.first], pixels[p.second]) for p in shown], captions, title)
