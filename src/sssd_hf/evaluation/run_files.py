"""What a report is made of: the files that evaluating, training and auditing left behind."""

from __future__ import annotations

import base64
import csv
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

from sssd_hf.evaluation.plain_language import number, same_test_images

WIDE = 1.6  # width by height from which a figure takes the whole page
# figures that others make: title, caption; the rest come with captions.json
KNOWN_FIGURES = {
    "errors.png": (
        "Most confident errors",
        "Test images on which the model was most sure and wrong, by its most probable class (a "
        "stored threshold may decide otherwise), with an overlay of where its answer came from "
        "(see the check of the explanations).",
    ),
    "examples.png": (
        "Examples",
        "Test images with an overlay of where the model's answer came from.",
    ),
    "embedding.png": (
        "Map of the features",
        "The model's features of the images in two dimensions. Neighbours are alike to the model; "
        "distances far apart and the axes mean nothing.",
    ),
    "curves.png": ("Training curves", "Losses and figures on validation over the training."),
    "reconstructions.png": (
        "Reconstructions",
        "What pretraining learned: images with most patches hidden, and what the model makes of "
        "the rest. It was not trained on these images.",
    ),
    "pairs.png": ("Copies", "Pairs of images that the audit takes for copies."),
}
HEAT_MAPS = ("errors.png", "examples.png")


@dataclass(frozen=True)
class Figure:
    """An image to embed: a data URI and what is said of it; width and height in pixels."""

    name: str
    title: str
    caption: str
    alt: str
    uri: str
    width: int
    height: int

    @property
    def wide(self) -> bool:
        return self.width > WIDE * self.height


@dataclass
class Run:
    """All that could be read. What is missing is None or empty, and named in `gaps`."""

    folder: Path
    results: dict
    model_dir: Path | None = None
    training: dict | None = None
    recipe: dict | None = None
    config: dict | None = None
    split_counts: dict[str, int] = field(default_factory=dict)
    pretraining_dir: Path | None = None
    pretraining: dict | None = None
    pretraining_recipe: dict | None = None
    audit: dict | None = None
    explanations: dict | None = None
    num_bad_files: int | None = None
    decided: dict[str, int] = field(default_factory=dict)  # images by predictions.csv's decision
    figures: dict[str, Figure] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)  # figures: title, reason
    gaps: list[str] = field(default_factory=list)

    def has_figure(self, name: str) -> bool:
        return name in self.figures

    def together_sentence(self) -> str:
        """Whether the groups of the test images were kept out of training."""
        column = self.results.get("group_column_name")
        if not column:
            return "Not known: no column of patients was named."
        shared = self.results.get("num_groups_shared_with_training")
        if shared is None:
            return f"Not known whether groups of the column {column} are in training too."
        if shared:
            return (
                f"NO: {shared} of {self.results['num_test_groups']} test groups of the column "
                f"{column} are also in training or validation."
            )
        return f"Yes: no test group of the column {column} is in training or validation."

    def overlays_sentence(self) -> str:
        """Whose heat maps are shown, of an ensemble; "" for one model."""
        members = self.results.get("num_members") or 1
        return f"The heat maps are of the first of {members} members." if members > 1 else ""

    def split_rule(self) -> str:
        """How the test images came to be that. The training's own options tell nothing of it:
        other images may be evaluated than were split then."""
        source, column = self.results.get("split_source"), self.results.get("split_column")
        if not source and column:
            source = f"the column {column}"
        return f"Known from {source}." if source else "How they were assigned is not known."

    def counts_sentence(self) -> str:
        """How many images the model's own splits have; "" where they are not known."""
        counts = ", ".join(f"{part} {count}" for part, count in self.split_counts.items())
        return f"Images of the training run: {counts}." if counts else ""

    def selection_sentence(self) -> str:
        training = self.training or {}
        chosen = training.get("chosen_by")
        if not chosen:
            return "How the final weights were chosen is not known."
        if chosen == "last":
            return "The weights of the last step were kept; none were chosen by their figures."
        step = training.get("best_step")
        return f"The weights with the best {chosen} on validation were kept" + (
            f" (step {step})." if step else "."
        )

    def leakage_sentence(self) -> str:
        if self.audit is None:
            return "Not audited."
        if not same_test_images(self.results, self.audit):
            return "The audit at hand is of other test images: of another cut, or of other data."
        leaks = [one["text"] for one in self.audit.get("findings", []) if one["kind"] == "leakage"]
        return " ".join(["The audit found:", *leaks]) if leaks else "The audit found no leak."

    def training_facts(self) -> list[str]:
        """Epochs, time and the like, of pretraining and fine-tuning."""
        facts = []
        for name, values in (("pretraining", self.pretraining), ("fine-tuning", self.training)):
            if not values:
                continue
            parts = []
            if values.get("num_train_images"):
                parts.append(f"{values['num_train_images']} images")
            if values.get("epoch"):
                parts.append(f"{values['epoch']:g} epochs")
            if values.get("learning_rate_peak"):
                parts.append(f"peak learning rate {values['learning_rate_peak']:.3g}")
            if values.get("train_runtime"):
                parts.append(f"{values['train_runtime'] / 60:.1f} minutes")
            facts.append(f"{name}: {', '.join(parts)}")
        return facts or ["options in section Training"]


def read_run(evaluation_dir, model_dir=None, pretraining_dir=None, audit=None) -> Run:
    """Read an evaluation, and what can be found of the rest; see `report.write_report`.

    Raises:
        ValueError: there is no all_results.json of an evaluation, or it cannot be read.
    """
    folder = Path(evaluation_dir)
    path = folder / "all_results.json"
    results = read_object(path)
    if results is None or "num_test_images" not in results:
        raise ValueError(
            f"{path}: cannot be read as the result of an evaluation, expected a JSON object with "
            "num_test_images; run scripts/evaluate.py with this --output_dir first"
        )
    run = Run(folder, results, explanations=results.get("explanations"))
    _read_predictions(run)
    _read_figures(run)
    _read_model(run, model_dir, pretraining_dir)
    _read_audit(run, audit)
    bad_files = folder / "bad_files.csv"
    if bad_files.is_file():
        lines = bad_files.read_text(encoding="utf-8", errors="replace").splitlines()
        run.num_bad_files = max(0, len(lines) - 1)
    return run


def read_object(path: Path) -> dict | None:
    """The object in a JSON file; None where there is no file, or no object in it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_figure(path: Path, title: str, caption: str, alt: str = "") -> Figure | None:
    """A PNG as a data URI; None where the file is missing or no PNG."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) < 24 or data[:8] != b"\x89PNG\r\n\x1a\n":
        return None
    width, height = struct.unpack(">II", data[16:24])
    uri = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    return Figure(path.name, title, caption, alt or f"{title}. {caption}", uri, width, height)


def _read_predictions(run):
    try:
        with open(run.folder / "predictions.csv", newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                decided = row["predicted"]
                run.decided[decided] = run.decided.get(decided, 0) + 1
    except (OSError, ValueError, KeyError, csv.Error):
        run.gaps.append("predictions.csv of the evaluation could not be read.")


def _read_figures(run):
    folder = run.folder / "figures"
    try:
        captions = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
        captions = [entry for entry in captions if isinstance(entry, dict)]
    except (OSError, ValueError, TypeError):
        captions = []
    told = {entry["file"]: entry for entry in captions if entry.get("file")}
    run.left_out = [(e.get("title", ""), e.get("caption", "")) for e in captions if not e["file"]]
    for path in sorted(folder.glob("*.png")):
        title, caption = KNOWN_FIGURES.get(path.name, (path.name, ""))
        if path.name in HEAT_MAPS:
            caption = f"{caption} {run.overlays_sentence()}".rstrip()
        entry = told.get(path.name, {})
        figure = read_figure(
            path, entry.get("title", title), entry.get("caption", caption), entry.get("alt", "")
        )
        if figure is None:
            run.gaps.append(f"figures/{path.name} is no PNG that can be read.")
        else:
            run.figures[path.name] = figure
    if not run.figures:
        run.gaps.append("There are no figures in the folder figures of the evaluation.")


def _read_model(run, model_dir, pretraining_dir):
    model = Path(model_dir or run.results.get("model_name_or_path") or "")
    if not (str(model) != "." and model.is_dir()):
        run.gaps.append("The model's folder is not at hand: training and selection are not known.")
        return
    run.model_dir = model
    run.training = read_object(model / "all_results.json")
    run.config = read_object(model / "config.json")
    run.recipe = _read_recipe(model / "finetune_recipe.yaml")
    splits = read_object(model / "splits.json") or {}
    run.split_counts = {part: len(names) for part, names in splits.items() if type(names) is list}
    missing = [
        name
        for name, value in (
            ("all_results.json", run.training), ("finetune_recipe.yaml", run.recipe),
            ("config.json", run.config), ("splits.json", run.split_counts),
        )
        if not value
    ]  # fmt: skip
    if missing:
        run.gaps.append(f"The model's folder lacks {', '.join(missing)}.")
    _add_figure(run, model / "curves.png", "curves.png")

    start = pretraining_dir or (run.recipe or {}).get("model_name_or_path")
    if start and Path(start).is_dir():
        run.pretraining_dir = Path(start)
        run.pretraining = read_object(run.pretraining_dir / "all_results.json")
        run.pretraining_recipe = _read_recipe(run.pretraining_dir / "pretrain_recipe.yaml")
        _add_figure(run, run.pretraining_dir / "reconstructions.png", "reconstructions.png")
        _add_figure(run, run.pretraining_dir / "curves.png", "curves.png", "pretraining_curves.png")
    elif start:
        run.gaps.append(f"The folder of the pretraining, {start}, is not at hand.")


def _add_figure(run, path, known, name=None):
    title, caption = KNOWN_FIGURES[known]
    if name is not None:
        title = f"{title} of pretraining"
    figure = read_figure(path, title, caption)
    if figure is None:
        run.gaps.append(f"{path} is missing or no PNG.")
    else:
        run.figures[name or known] = figure


def _read_recipe(path: Path) -> dict | None:
    """The options of a recipe, those of its one script."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(content, dict):
        return None
    options = {}
    for section in content.values():
        options |= section if isinstance(section, dict) else {}
    return options


def _read_audit(run, audit):
    places = [Path(audit)] if audit else [run.folder, *([run.model_dir] if run.model_dir else [])]
    for place in places:
        path = place / "audit.json" if place.is_dir() else place
        run.audit = read_object(path)
        if run.audit is not None:
            _add_pairs(run, path.parent / "pairs.png")
            return
    if audit:
        run.gaps.append(f"The audit {audit} could not be read.")
    else:
        run.gaps.append("The data were not audited, or its audit.json is not at hand.")


def _add_pairs(run, path):
    title, caption = KNOWN_FIGURES["pairs.png"]
    shown = f"{caption} {number(run.audit.get('num_pairs'), 0)} pairs in all; the worst first."
    figure = read_figure(path, title, shown)
    if figure is not None:
        run.figures["pairs.png"] = figure
