"""Which runs a protocol has: folds or named splits, times seeds; and the options of each run."""

import hashlib
import json
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from ..data.cross_validation import fold_splits
from ..data.sources import column_texts, require_labels
from .arguments import CrossValidateArguments, DataArguments
from .common import write_json
from .data import load_data, split_data, stored_slice_axis
from .parsing import as_dict, command_line, option_names, option_words, parse, read_recipe

STAGES = ("pretrain", "finetune", "evaluate")
# of one run, so that they can't be given for all
OWN_OPTIONS = {
    "seed": "give --seeds",
    "splits_file": "give --cross_validation or --split_column",
    "resume_from_checkpoint": "leave it out: the same command goes on where it was interrupted",
    "overwrite_output_dir": "name another --output_dir, or delete that one",
    "push_to_hub": "publish a fold's finetune folder afterwards, by push_to_hub.py",
    "hub_model_id": "publish a fold's finetune folder afterwards, by push_to_hub.py",
    "hub_tag": "publish a fold's finetune folder afterwards, by push_to_hub.py",
}
# options that may change between an interrupted protocol and the command that goes on
FREE_OPTIONS = {
    "output_dir", "data_dir", "cache_dir", "cache", "logging_steps", "report_to",
    "checkpointing_steps", "checkpointing_minutes", "save_total_limit", "compare_with",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "seed", "splits_file", "split_column", "resume_from_checkpoint", "overwrite_output_dir",
}  # fmt: skip
# where the stages must agree with each other
SHARED_OPTIONS = (
    "data_dir", "dataset_name", "dataset_config_name", "dataset_revision", "image_column_name",
    "group_column_name", "label_column_name", "slice_axis",
)  # fmt: skip
RESERVED = {"ensemble", "pretrain_on_all"}  # folders beside those of the runs


@dataclass(frozen=True)
class Run:
    """One split with one seed.

    Args:
        name: its folder, such as "fold_0" or "paper_split_0_seed_1".
        split: the name without the seed.
        repeat: runs of one repeat and one seed test no image twice, where folds are made.
        splits: rows of train, validation and test.
        title: for people, such as "fold 1 of 5".
    """

    name: str
    split: str
    repeat: int
    seed: int
    splits: dict[str, list[int]]
    title: str


@dataclass(frozen=True)
class Options:
    """Of the protocol itself, and the words and parsed options of its stages."""

    data: DataArguments
    protocol: CrossValidateArguments
    words: dict[str, list[str]]
    parsed: dict[str, tuple[Any, ...]]
    command: str

    def given(self, stage: str) -> set[str]:
        """Names of the options of a stage that the command line or the recipe sets."""
        given = dict(option_words(self.words[stage]))
        recipe = given.get("recipe", [""])[-1].partition("=")[2] or given.get("recipe", [""])[-1]
        return set(given) | set(read_recipe(recipe, stage, option_names(stage)) if recipe else ())

    def stages(self) -> tuple[str, ...]:
        return STAGES[1:] if self.protocol.skip_pretraining else STAGES


def read_options(description: str, argv: list[str]) -> Options:
    """Options of the protocol and, of those it does not have, of the stages that know them. All are
    checked now, for the last stage may begin hours later.

    Raises:
        ValueError: an option that no stage has, that is of one run, or on which the stages
            differ.
    """
    if {"-h", "--help"} & set(argv):
        parse("cross_validate", description, ["--help"])
    given = option_words(argv)
    known = {script: option_names(script) for script in ("cross_validate", *STAGES)}
    recipe: list[str] = []
    for name, words in given:
        if name == "recipe":
            recipe = words
        elif name in OWN_OPTIONS:
            raise ValueError(f"--{name} does not go with several runs: {OWN_OPTIONS[name]}.")
        elif not any(name in names for names in known.values()):
            raise ValueError(
                f"--{name}: neither cross_validate nor {', '.join(STAGES)} has it; see --help."
            )

    def words_of(script: str, left_out: set[str]) -> list[str]:
        words = [w for n, part in given if n in known[script] - left_out for w in part]
        return [*(recipe if _concerns(recipe, script) else []), *words]

    data, protocol = parse("cross_validate", description, words_of("cross_validate", set()))
    if data.splits_file or data.streaming:
        raise ValueError(
            "--splits_file and --streaming do not go with cross_validate, which makes the splits "
            "of images at hand; leave them out."
        )
    # the protocol's own stay with it, even where a stage has one of the same name
    own = {f.name for f in fields(CrossValidateArguments)} | {"split_column"}
    own -= {"num_resamples"}
    words = {stage: words_of(stage, own) for stage in STAGES}
    if not protocol.skip_pretraining:
        words["finetune"] = words_of("finetune", own | {"model_name_or_path"})
    parsed = {stage: parse(stage, description, words[stage]) for stage in STAGES}
    for stage in STAGES:
        for name in SHARED_OPTIONS:
            here, there = getattr(parsed[stage][0], name), getattr(data, name)
            if here != there:
                raise ValueError(
                    f"--{name} is {here} for {stage} and {there} for the splits; give it on the "
                    "command line or in the recipe's section common."
                )
    return Options(data, protocol, words, parsed, command_line("cross_validate", argv))


def _concerns(recipe: list[str], script: str) -> bool:
    """Whether the recipe has a section for the script; a bad file is left to `parse` to refuse."""
    try:
        path = recipe[0].partition("=")[2] or recipe[1]
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        sections = set(content)
    except (IndexError, OSError, TypeError, ValueError, yaml.YAMLError):
        return bool(recipe)
    return bool({"common", script} & sections) or not sections & set(STAGES)


def load_dataset(options: Options) -> Any:
    first = options.parsed[options.stages()[0]][1]
    axis = stored_slice_axis(first.model_name_or_path, first.model_revision)
    dataset = load_data(options.data, axis)
    require_labels(dataset)
    return dataset


def plan_runs(dataset: Any, options: Options) -> list[Run]:
    """All runs, split by split, each with all seeds.

    Raises:
        ValueError: splits that are impossible, or of one name; a split without a test part.
    """
    data, protocol = options.data, options.protocol
    splits = _folds(dataset, data, protocol) if protocol.cross_validation else None
    splits = splits or _named_splits(dataset, data, protocol)
    names = [name for name, *_ in splits]
    wrong = [n for n in names if names.count(n) > 1 or n in RESERVED]
    if wrong:
        raise ValueError(
            f"--split_column {data.split_column}: {wrong[0]!r} would be the folder of several "
            "things; give each column once, and another name"
        )
    seeds = protocol.list_of_seeds()
    runs = []
    for name, repeat, parts, title in splits:
        if not parts["test"]:
            raise ValueError(
                f"{name}: has no test images; name their value by --test_split, or make folds by "
                "--cross_validation"
            )
        for seed in seeds:
            several = len(seeds) > 1
            run_name = f"{name}_seed_{seed}" if several else name
            run_title = f"{title}, seed {seed}" if several else title
            runs.append(Run(run_name, name, repeat, seed, parts, run_title))
    return runs


def _folds(dataset, data, protocol):
    folds, repeats = protocol.cross_validation, protocol.cross_validation_repeats
    rows = None
    if protocol.cross_validation_on == "training":
        own = split_data(dataset, data, protocol.split_seed, None)
        rows = own["train"] + own["validation"]
    found = []
    for repeat in range(repeats):
        parts = fold_splits(
            dataset,
            folds,
            rows=rows,
            train_val_split=data.train_val_split,
            group_column_name=data.group_column_name,
            seed=protocol.split_seed + repeat,
        )
        for fold, part in enumerate(parts):
            name, title = f"fold_{fold}", f"fold {fold + 1} of {folds}"
            if repeats > 1:
                name = f"repeat_{repeat}_{name}"
                title = f"repeat {repeat + 1} of {repeats}, {title}"
            found.append((name, repeat, part, title))
    return found


def folder_name(name: str) -> str:
    """A split column's name, or any other, as the name of one folder."""
    return re.sub(r"[^\w.-]+", "_", name)


def split_columns(data: DataArguments) -> list[str]:
    return [name.strip() for name in (data.split_column or "").split(",") if name.strip()]


def _named_splits(dataset, data, protocol):
    """Each a repeat of its own, for their test images may be the same."""
    columns = split_columns(data)
    if len(columns) < 2:
        name = folder_name(columns[0]) if columns else "split"
        one = replace(data, split_column=columns[0] if columns else None)
        return [(name, 0, split_data(dataset, one, protocol.split_seed, None), name)]
    return [
        (
            folder_name(column),
            number,
            split_data(dataset, replace(data, split_column=column), protocol.split_seed, None),
            f"{column} ({number + 1} of {len(columns)} splits)",
        )
        for number, column in enumerate(columns)
    ]


def describe(options: Options, dataset: Any, num_processes: int) -> dict[str, Any]:
    """What must stay the same for a protocol to go on: options and data."""

    def kept(*arguments):
        return {k: v for k, v in as_dict(*arguments).items() if k not in FREE_OPTIONS}

    result = {"cross_validate": kept(options.data, options.protocol)}
    result["cross_validate"]["split_column"] = options.data.split_column
    for stage in options.stages():
        result[stage] = kept(*options.parsed[stage])
        if stage != "evaluate":
            training = options.parsed[stage][-1]
            parts = training.per_device_train_batch_size, training.gradient_accumulation_steps
            result[stage]["images_a_step"] = parts[0] * parts[1] * num_processes
    columns = [dataset["file_name"][:], dataset["label"][:]]
    if options.data.group_column_name is not None:
        columns.append(column_texts(dataset, options.data.group_column_name, "--group_column_name"))
    rows = sorted(zip(*columns, strict=True))
    result["data"] = {
        "images": len(rows),
        "labels": ", ".join(dataset.features["label"].names),
        "digest of names, labels and groups": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
    }
    return result


def check_description(path: Path, description: dict[str, Any]) -> bool:
    """Whether `path` describes the same protocol; False where there is none yet.

    Raises:
        ValueError: it describes another one; all that differs is named.
    """
    if not path.is_file():
        return False
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read ({error}); name another --output_dir.") from error
    description = json.loads(json.dumps(description))
    differences = []
    for section in {**stored, **description}:
        before, now = stored.get(section, {}), description.get(section, {})
        for name in {**before, **now}:
            if before.get(name) != now.get(name):
                values = f"{before.get(name)} -> {now.get(name)}"
                differences.append(f"{section}: {name}: {values}")
    if differences:
        raise ValueError(
            f"--output_dir {path.parent} holds a protocol begun with other options or data "
            f"({'; '.join(differences)}). Go on with those it began with, or name another folder."
        )
    return True


def write_description(path: Path, description: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, description)
