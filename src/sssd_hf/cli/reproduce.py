"""All runs of a study: every variant of a recipe on every split and seed that the recipe names.

`python scripts/reproduce.py --recipe recipes/covid_ct_cpu.yaml --data_dir COVID_CT`. The recipe's
section "reproduce" has the plan. Each run pretrains, fine-tunes and evaluates, and leaves one small
JSON in --results_dir; a run whose JSON is there is not done again, an interrupted one goes on; with
other options than those it was done or begun with it is neither, and the difference is named. At
the end, and with --tables_only true, the study's figures, its tables (RECIPE.json and RECIPE.md in
--results_dir) and its card (in --cards_dir) are written from these files alone.
"""

import json
import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from transformers import PretrainedConfig

from . import cross_validate, pretrain
from .arguments import ReproduceArguments
from .common import check_checkpoint, write_json
from .external import write_external_table
from .parsing import as_dict, option_names, option_words, parse
from .protocol import Options, folder_name, read_options
from .simple_runs import KINDS, run_simple
from .study_cards import main_row, study_card
from .study_records import (
    comparable,
    differences,
    digest,
    make_record,
    read_records,
    record_path,
    revision,
    simple_record,
    write_record,
)
from .study_summary import planned, summarise_study
from .study_tables import tables

logger = logging.getLogger("sssd_hf")
PLAN_KEYS = {"data", "protocols", "variants"}  # and "notes" on the data, for the card
PROTOCOL_KEYS = {"title", "columns", "seeds", "without"}  # the others are options
BEGUN = "run.json"  # what decides a run, and the revisions of the code that it was done with


@dataclass(frozen=True)
class StudyRun:
    """One variant on one split with one seed; options beside those of the recipe.

    Args:
        external: folders of other sets to pretrain on too.
        baseline: what is run instead of the three scripts, of `simple_runs.KINDS`; "": nothing.
    """

    protocol: str
    variant: str
    split: str
    seed: int
    options: dict[str, Any]
    external: tuple[str, ...] = ()
    baseline: str = ""

    def place(self, arguments: ReproduceArguments) -> Path:
        """Its folder."""
        name = f"{folder_name(self.split)}-seed_{self.seed}"
        return Path(arguments.output_dir) / folder_name(self.variant) / name

    def record_path(self, arguments: ReproduceArguments, recipe: str) -> Path:
        results_dir, study = Path(arguments.results_dir), Path(recipe).stem
        return record_path(results_dir, study, self.variant, self.split, self.seed)


def read_plan(recipe: str) -> dict[str, Any]:
    """The recipe's section "reproduce".

    Raises:
        ValueError: there is none, or it is of another form.
    """
    if not recipe or not Path(recipe).is_file():
        raise ValueError(f"--recipe {recipe}: there is no such file; name a recipe with a plan.")
    content = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
    plan = content.get("reproduce") if isinstance(content, dict) else None
    if not isinstance(plan, dict) or set(plan) - {"notes"} != PLAN_KEYS:
        found = sorted(plan) if isinstance(plan, dict) else "nothing"
        raise ValueError(
            f"--recipe {recipe}: its section reproduce has {found}; expected "
            f"{', '.join(sorted(PLAN_KEYS))} and, if you like, notes."
        )
    return plan


def list_runs(plan: dict[str, Any], arguments: ReproduceArguments) -> list[StudyRun]:
    """The runs asked for, protocol by protocol, run by run, so that an early end leaves pairs.

    Raises:
        ValueError: a variant, protocol or baseline that there is not; a column whose name cannot
            be given to --split_column.
    """
    chosen = {}
    for option, known in (("variants", plan["variants"]), ("protocols", plan["protocols"])):
        names = [n.strip() for n in getattr(arguments, option).split(",") if n.strip()]
        unknown = set(names) - set(known)
        if unknown:
            raise ValueError(
                f"--{option} {', '.join(sorted(unknown))}: the plan has {', '.join(known)}."
            )
        chosen[option] = names or list(known)
    runs = []
    for name in chosen["protocols"]:
        protocol = plan["protocols"][name]
        wrong = [c for c in protocol["columns"] if "," in c or c != c.strip()]
        if wrong:
            raise ValueError(
                f"protocol {name}: --split_column takes names by comma, so that no column can be "
                f"called {wrong[0]!r}; rename it."
            )
        shared = {k: v for k, v in protocol.items() if k not in PROTOCOL_KEYS}
        for split, seed in planned(protocol):
            for variant in chosen["variants"]:
                own = dict(plan["variants"][variant] or {})
                own.pop("title", None)
                external, baseline = tuple(own.pop("external", ())), own.pop("baseline", "")
                if baseline and baseline not in KINDS:
                    raise ValueError(
                        f"variant {variant}: there is no baseline {baseline!r}; there are "
                        f"{', '.join(KINDS)}."
                    )
                options = {**shared, **own}
                runs.append(StudyRun(name, variant, split, seed, options, external, baseline))
    return runs


def _words(options: dict[str, Any]) -> list[str]:
    words = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        texts = [str(v).lower() if isinstance(v, bool) else str(v) for v in values]
        words += [f"--{name}", *texts] if value is not None else []
    return words


def protocol_words(run: StudyRun, arguments: ReproduceArguments, recipe: str) -> list[str]:
    """The options of cross_validate and, through it, of the stages."""
    place = run.place(arguments)
    words = ["--recipe", recipe, "--data_dir", arguments.data_dir or ".", "--split_column"]
    words += [run.split, *_words(run.options), "--seeds", str(run.seed), "--output_dir", str(place)]
    words += ["--report", str(arguments.report).lower()]
    if run.external:
        words += ["--skip_pretraining", "true", "--model_name_or_path", str(place / "pretrain")]
    return words


def external_words(run: StudyRun, arguments: ReproduceArguments, recipe: str) -> list[str]:
    """The options of the pretraining on other sets too."""
    place = run.place(arguments)
    known = option_names("pretrain") - {"train_split"}
    words = ["--recipe", recipe, *_words({k: v for k, v in run.options.items() if k in known})]
    words += ["--data_dir", str(_table(place)), "--split_column", "part", "--train_split", "train"]
    words += ["--label_column_name", "", "--group_column_name", "", "--train_val_split", "0"]
    words += ["--seed", str(run.seed), "--resume_from_checkpoint", "latest"]
    return [*words, "--output_dir", str(place / "pretrain")]


def baseline_words(run: StudyRun, arguments: ReproduceArguments, recipe: str) -> list[str]:
    """The options of finetune.py for a baseline."""
    known = option_names("finetune")
    words = ["--recipe", recipe, *_words({k: v for k, v in run.options.items() if k in known})]
    words += ["--data_dir", arguments.data_dir or ".", "--split_column", run.split]
    return [*words, "--seed", str(run.seed), "--output_dir", str(run.place(arguments))]


def _table(place: Path) -> Path:
    return place / "external" / "images.csv"


def read_stages(
    run: StudyRun, arguments: ReproduceArguments, recipe: str
) -> tuple[Options, dict[str, dict[str, Any]]]:
    """The options of a run that is no baseline, and those of each of its scripts."""
    options = read_options("", protocol_words(run, arguments, recipe))
    parsed = {stage: as_dict(*options.parsed[stage]) for stage in options.stages()}
    if run.external:
        parsed["pretrain"] = as_dict(*parse("pretrain", "", external_words(run, arguments, recipe)))
    return options, parsed


def started_from(run: StudyRun, parsed: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Script -> the checkpoint that it starts from, where no script before has made it."""
    made = {"evaluate", *(["finetune"] if run.external else [])}
    starts = {
        stage: parsed[stage].get("model_name_or_path") for stage in parsed if stage not in made
    }
    return {stage: str(name) for stage, name in starts.items() if name}


def decide(run: StudyRun, arguments: ReproduceArguments, recipe: str, data: str) -> dict[str, Any]:
    """What decides a run, beside its split and seed: the data set, other sets it is pretrained on,
    the name of the checkpoint it starts from, digested (a record has no path; another checkpoint
    under the same name is not noticed), and the options of each script, of which those that change
    no result are left out."""
    if run.baseline:
        parsed = parse("finetune", "", baseline_words(run, arguments, recipe))
        # how something is trained decides a network alone: the others know only the images
        decisive = as_dict(*(parsed if run.baseline == "resnet18" else parsed[:1]))
        options = {"finetune": comparable(decisive), "baseline": {"kind": run.baseline}}
        return {"data": data, "external": [], "started_from": {}, "options": options}
    options, parsed = read_stages(run, arguments, recipe)
    if options.protocol.pretrain_on_all or options.protocol.cross_validation:
        raise ValueError(
            f"--recipe {recipe}: a study runs splits that columns name, and pretrains on their "
            "training images; leave out pretrain_on_all and cross_validation."
        )
    starts = started_from(run, parsed)
    parsed["cross_validate"] = as_dict(options.data, options.protocol)
    return {
        "data": data,
        "external": list(run.external),
        "started_from": {stage: digest(data, name) for stage, name in starts.items()},
        "options": {script: comparable(values) for script, values in parsed.items()},
    }


def decide_all(
    runs: list[StudyRun], arguments: ReproduceArguments, recipe: str, data: str
) -> dict[Path, dict[str, Any]]:
    """What decides each run, by the path of its record.

    Raises:
        ValueError: two runs that differ would leave one record.
    """
    kinds: dict[tuple[str, str], dict[str, Any]] = {}
    found: dict[Path, tuple[StudyRun, dict[str, Any]]] = {}
    for run in runs:
        kind = run.protocol, run.variant
        if kind not in kinds:  # neither the split nor the seed is part of it
            kinds[kind] = decide(run, arguments, recipe, data)
        path = run.record_path(arguments, recipe)
        other, decided = found.setdefault(path, (run, kinds[kind]))
        if (other.variant, other.split) != (run.variant, run.split):
            raise ValueError(
                f"--recipe {recipe}: {other.variant}, {other.split} and {run.variant}, {run.split} "
                f"would both have the record {path}; rename one."
            )
        unlike = differences(decided, kinds[kind])
        if unlike:
            raise ValueError(
                f"--recipe {recipe}: the protocols {other.protocol} and {run.protocol} both have "
                f"{run.split}, seed {run.seed}, of which there is one record ({path}), but they "
                f"differ in {'; '.join(unlike)}. Give one of them other seeds, or a copy of the "
                "column under another name."
            )
    return {path: decided for path, (_, decided) in found.items()}


def _some(paths: list[Path]) -> str:
    shown = ", ".join(map(str, paths[:3]))
    return f"{shown} and {len(paths) - 3} others" if len(paths) > 3 else shown


def check_records(decided: dict[Path, dict[str, Any]], results_dir: Path, study: str) -> None:
    """
    Raises:
        ValueError: a record that is there is of a run with other options or data than are asked
            for now.
    """
    read_records(results_dir, study)  # refuses what is no record
    unlike: dict[str, list[Path]] = {}
    for path, wanted in decided.items():
        if path.is_file():
            found = differences(json.loads(path.read_text(encoding="utf-8")), wanted)
            if found:
                unlike.setdefault("; ".join(found), []).append(path)
    if unlike:
        listed = "\n".join(f"{_some(paths)}: {values}" for values, paths in unlike.items())
        raise ValueError(
            "there are records of runs with other options or data than the recipe has now (record "
            f"-> recipe):\n{listed}\nGo back to those of the records, delete these so that the "
            "runs are done again, or name another --results_dir."
        )


def check_begun(place: Path, decided: dict[str, Any]) -> list[str]:
    """Revisions of the code that the run in `place` was begun with; none where it was not.

    Raises:
        ValueError: it was begun with other options or data. Of an encoder that was pretrained on
            other sets nothing else would tell: the stages after it only know its folder.
    """
    path = place / BEGUN
    if not path.is_file():
        if decided["external"] and (place / "pretrain").exists():
            raise ValueError(
                f"{place / 'pretrain'}: there is no {BEGUN} beside it that tells which sets it was "
                "pretrained on. Delete it, or name another --output_dir."
            )
        return ["unknown"] if (place / cross_validate.DESCRIPTION).is_file() else []
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        found, revisions = differences(begun["decided"], decided), list(begun["revisions"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: cannot be read ({error!r}). Delete {place}, or name another --output_dir."
        ) from error
    if found:
        raise ValueError(
            f"{place}: a run begun with other options or data than the recipe has now (begun with "
            f"-> recipe): {'; '.join(found)}. Go back to those, delete the folder, or name another "
            "--output_dir."
        )
    return revisions


def external_folders(run: StudyRun, arguments: ReproduceArguments) -> list[Path]:
    beside = Path(arguments.external_dir or Path(arguments.data_dir).parent)
    return [beside / name for name in run.external]


def check_inputs(run: StudyRun, arguments: ReproduceArguments, recipe: str) -> None:
    """
    Raises:
        ValueError: other sets or the checkpoint that the run needs are not there.
    """
    for folder in external_folders(run, arguments):
        if not folder.is_dir():
            raise ValueError(
                f"the variant {run.variant} is pretrained on {folder} too, which is no folder: put "
                "it there, name another --external_dir, or name --variants without it."
            )
    if run.baseline:
        return
    for start in started_from(run, read_stages(run, arguments, recipe)[1]).values():
        check_checkpoint(start)
        if start.endswith(".pth") or Path(start).is_dir():
            continue
        try:
            PretrainedConfig.get_config_dict(start)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the variant {run.variant} starts from {start}, which is neither a folder here "
                f"nor a checkpoint on the Hub that can be reached ({error}): make it first (the "
                "recipe says how), or name --variants without it."
            ) from error


def perform(
    run: StudyRun,
    arguments: ReproduceArguments,
    recipe: str,
    decided: dict[str, Any],
    started: str,
) -> None:
    """The three stages of a run, or its baseline, and its record.

    Args:
        decided: as `decide` tells.
        started: the revision of the code that this process has loaded; by the time of the record
            there may be another.

    Raises:
        ValueError: as `check_begun`; the recipe was changed while the run was done.
    """
    if run.baseline:  # of minutes at most: there is nothing to go on from
        words = protocol_words(run, arguments, recipe)
        seed = read_options("", words).protocol.split_seed
        found = run_simple(run.baseline, baseline_words(run, arguments, recipe), seed)
        record = simple_record(found, run.variant, run.split, run.seed, decided, [started])
        write_record(run.record_path(arguments, recipe), record)
        return
    place = run.place(arguments)
    revisions = check_begun(place, decided)
    revisions += [started] if started not in revisions[-1:] else []
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / BEGUN, {"decided": decided, "revisions": revisions})
    inner = place / folder_name(run.split)
    folders = {stage: inner / stage for stage in ("finetune", "evaluate")}
    if run.external:
        folders["pretrain"] = place / "pretrain"
        train_split = decided["options"]["cross_validate"]["train_split"]
        pretrain_on_more(run, arguments, recipe, train_split)
    elif "pretrain" in decided["options"]:
        folders["pretrain"] = inner / "pretrain"
    cross_validate.main(protocol_words(run, arguments, recipe))
    ended = revision()
    revisions += [ended] if ended != revisions[-1] else []
    record = make_record(folders, run.variant, run.split, run.seed, decided, revisions)
    found = differences(decided, record)
    if found:
        raise ValueError(
            f"{place}: the run was not done as the recipe was when it began ({'; '.join(found)}), "
            "so that it has no record. Leave the recipe as it is while it is read, delete the "
            "folder, and start again."
        )
    write_record(run.record_path(arguments, recipe), record)


def pretrain_on_more(
    run: StudyRun, arguments: ReproduceArguments, recipe: str, train_split: str | None
) -> None:
    """Pretraining on the training images of the target and on those of other sets, without what is
    a near copy of a test image."""
    place = run.place(arguments)
    if (place / "pretrain" / "all_results.json").is_file():  # of this run: see check_begun
        return
    folders = external_folders(run, arguments)
    write_external_table(_table(place), Path(arguments.data_dir), run.split, train_split, folders)
    pretrain.main(external_words(run, arguments, recipe))


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    given = option_words(argv)
    recipe = next((words[-1] for name, words in given if name == "recipe"), "")
    recipe = recipe.partition("=")[2] or recipe
    (arguments,) = parse(
        "reproduce", __doc__, [w for name, words in given if name != "recipe" for w in words]
    )
    plan = read_plan(recipe)
    name, results_dir, started = Path(recipe).stem, Path(arguments.results_dir), revision()
    # all of the plan, for the tables are of all records that are there
    every = list_runs(plan, replace(arguments, variants="", protocols=""))
    decided = decide_all(every, arguments, recipe, plan["data"])
    check_records(decided, results_dir, name)
    # a run of two protocols is one
    runs = {run.record_path(arguments, recipe): run for run in list_runs(plan, arguments)}
    left = {path: run for path, run in runs.items() if not path.is_file()}
    if not arguments.tables_only:
        if left and not arguments.data_dir:
            raise ValueError("--data_dir: name the folder of the images.")
        for path, run in left.items():  # before the first of them takes its hours
            check_begun(run.place(arguments), decided[path])
        for run in {(run.protocol, run.variant): run for run in left.values()}.values():
            check_inputs(run, arguments, recipe)
        for number, (path, run) in enumerate(left.items(), 1):
            print(
                f"\n=== run {number} of {len(left)} ({len(runs) - len(left)} are there already): "
                f"{run.variant}, {run.split}, seed {run.seed}",
                flush=True,
            )
            perform(run, arguments, recipe, decided[path], started)
    write_study(name, plan, Path(recipe), arguments)
    return 0


def write_study(
    name: str, plan: dict[str, Any], recipe: Path, arguments: ReproduceArguments
) -> None:
    """The figures, tables and card of a study, from the records that are there.

    Raises:
        ValueError: as `summarise_study` and `study_card`.
    """
    print("Intervals and tests over all records: a minute or two.", flush=True)
    results_dir = Path(arguments.results_dir)
    cards_dir = Path(arguments.cards_dir or results_dir / "cards")
    summary = summarise_study(results_dir, name, plan)
    text = tables(summary)
    for folder in (results_dir, cards_dir):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(results_dir / f"{name}.json", summary)
    paths = results_dir / f"{name}.md", cards_dir / f"{name}.md"
    paths[0].write_text(text, encoding="utf-8")
    written = [paths[0]]
    if any(main_row(protocol, summary["main"]) for protocol in summary["protocols"]):
        paths[1].write_text(study_card(summary, recipe), encoding="utf-8")
        written.append(paths[1])
    print(f"{text}\nwritten to {' and '.join(map(str, written))}")
