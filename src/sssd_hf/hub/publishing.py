"""Which files of a run are published: those on a list. All others are named and stay at home."""

import logging
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from .clean import cleaned_file
from .remote_code import MODULES

logger = logging.getLogger("sssd_hf")
CODE = tuple(f"{name}.py" for name in MODULES)
WEIGHTS = (
    "config.json", "preprocessor_config.json", "model.safetensors",
    "model-[0-9]*-of-[0-9]*.safetensors", "model.safetensors.index.json",
)  # fmt: skip
RESULTS = ("all_results.json", "pretrain_recipe.yaml", "finetune_recipe.yaml")
# figures of numbers alone: neither pixels nor names of files
NUMBERS_DRAWN = (
    "curves", "roc", "precision_recall", "reliability", "confusion", "confusion_matrix",
    "confusion_operating_point", "coverage",
)  # fmt: skip
FIGURES = tuple(f"{place}{name}.png" for place in ("", "figures/") for name in NUMBERS_DRAWN)
# what is most likely to be asked for, and why it is not published unasked; the first that fits
REFUSED = (
    ("checkpoints/*", "the state of the optimiser, to resume the run"),
    ("*optimizer*", "the state of the optimiser, to resume the run"),
    ("splits.json", "names of files and patients"),
    ("*bad_files.csv", "names of files"),
    ("*predictions*", "names of files, and what was said of each"),
    ("*report*.html", "images and names of files"),
    ("*embedding*", "a patient may be found again by them"),
    ("*neighbo*", "images and names of files"),
    ("*reconstruction*", "shows images"),
    ("*overlay*", "shows images"),
    ("*explanation*", "shows images"),
    ("*contact_sheet*", "shows images"),
    ("*pairs*.png", "shows images"),
    ("README.md", "the card at the root tells of it"),
    ("audit.*", "names of files; the card tells the findings"),
    ("*.png", "may show images"),
    ("*.pt*", "a pickle, which may run code"),
    ("*.pkl", "a pickle, which may run code"),
    ("*.bin", "a pickle, which may run code"),
)


@dataclass
class Plan:
    """What is to be published: path in the repository -> file or bytes; and what is not: (file, the
    reason)."""

    files: dict[str, Path | bytes] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def size(self) -> int:
        """In bytes."""
        return sum(
            len(f) if isinstance(f, bytes) else f.stat().st_size for f in self.files.values()
        )


def reason_of(name: str) -> str:
    """Why a file that is not on the list is not published; `name` is its path in its folder."""
    low = name.lower()
    return next(
        (why for pattern, why in REFUSED if fnmatch(low, pattern) or fnmatch(low, f"*/{pattern}")),
        "not on the list of what is published",
    )


def is_named(name: str, pattern: str) -> bool:
    """Whether a path fits a pattern whose * does not reach into folders."""
    return fnmatch(name, pattern) and name.count("/") == pattern.count("/")


def add_folder(
    plan: Plan, folder: Path, prefix: str, allowed: tuple[str, ...], include: list[str]
) -> None:
    """The allowed files of `folder`, below `prefix` in the repository. Hidden files and folders are
    neither published nor named."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in Path(name).parts):
            continue
        target = prefix + name
        if target in plan.files:
            continue
        wanted = any(fnmatch(target, pattern) or fnmatch(name, pattern) for pattern in include)
        if any(is_named(name, pattern) for pattern in allowed):
            plan.files[target] = cleaned_file(path) or path
        elif wanted:
            logger.warning(
                f"--include: {target} is published although it is not on the list "
                f"({reason_of(name)}): make sure that nobody can be known by it"
            )
            plan.files[target] = path
        else:
            shown = prefix + "checkpoints/" if name.startswith("checkpoints/") else target
            if (shown, reason_of(name)) not in plan.refused:
                plan.refused.append((shown, reason_of(name)))


def plan_files(
    model_dir: Path,
    evaluation_dir: Path | None = None,
    pretraining_dir: Path | None = None,
    include: list[str] | None = None,
) -> Plan:
    """What is published of a model's folder, at the repository's root; of its evaluation, in
    `evaluation/`; of the pretraining checkpoint, in `pretraining/`, but its code at the root, where
    remote code must lie.

    Args:
        include: patterns of paths, of other files that are to be published too.

    Raises:
        ValueError: a folder is no checkpoint or no evaluation, or a pattern fits nothing.
    """
    include = include or []
    plan = Plan()
    if pretraining_dir:
        require_checkpoint("--pretraining_dir", pretraining_dir)
    if evaluation_dir and not (evaluation_dir / "all_results.json").is_file():
        raise ValueError(
            f"--evaluation_dir {evaluation_dir}: there is no all_results.json; expected the folder "
            "that evaluate.py wrote."
        )
    require_checkpoint("--model_dir", model_dir)
    card = ("README.md", "LICENSE")
    add_folder(plan, model_dir, "", (*WEIGHTS, *CODE, *RESULTS, *FIGURES, *card), include)
    if evaluation_dir:
        add_folder(plan, evaluation_dir, "evaluation/", ("all_results.json", *FIGURES), include)
    if pretraining_dir:
        allowed = (*WEIGHTS, *RESULTS, *FIGURES)
        add_folder(plan, pretraining_dir, "pretraining/", allowed, include)
        for name in CODE:
            path = pretraining_dir / name
            if not path.is_file():
                raise ValueError(
                    f"--pretraining_dir {pretraining_dir}: {name} is missing; expected the output "
                    "folder of pretrain.py, which holds the model's code."
                )
            known = plan.files.setdefault(name, path)
            if known != path and known.read_bytes() != path.read_bytes():
                logger.warning(
                    f"{name} differs between {model_dir} and {pretraining_dir}, which other "
                    f"versions of this package wrote: that of {model_dir} is published for both"
                )
    code = {f"pretraining/{name}" for name in CODE}  # published at the root
    plan.refused = [one for one in plan.refused if one[0] not in {*plan.files, *code}]
    for pattern in include:
        if not any(
            fnmatch(f, pattern) or fnmatch(f.split("/", 1)[-1], pattern) for f in plan.files
        ):
            raise ValueError(f"--include {pattern}: no file fits; expected a path or pattern.")
    return plan


def require_checkpoint(option: str, folder: Path) -> None:
    """Raises ValueError for a folder without config.json and safetensors."""
    for name, pattern in (("config.json", "config.json"), ("weights", "model*.safetensors")):
        if not any(folder.glob(pattern)):
            raise ValueError(
                f"{option} {folder}: there is no {name} ({pattern}); expected the folder of a "
                "checkpoint (of a training that has ended)."
            )


def log_refused(refused: list[tuple[str, str]]) -> None:
    """Each refused file by its name and why; those of a folder with many as one."""
    folders = Counter(name.rsplit("/", 1)[0] for name, _ in refused if "/" in name)
    told = set()
    for name, why in refused:
        folder = name.rsplit("/", 1)[0] if "/" in name else ""
        if folders.get(folder, 0) > 20:
            if folder not in told:
                logger.info(f"not published: {folder}/ ({folders[folder]} files): {why}")
                told.add(folder)
        else:
            logger.info(f"not published: {name}: {why}")
