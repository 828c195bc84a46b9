"""All runs of a study: every variant of a recipe on every split and seed that the recipe names.

`python scripts/reproduce.py --recipe recipes/covid_ct_cpu.yaml --data_dir COVID_CT`. The recipe's
section "reproduce" has the plan. Each run pretrains, fine-tunes and evaluates, and leaves one small
JSON in --results_dir; a run whose JSON is there is not done again, an interrupted one goes on. At
the end, and with --tables_only true, the tables are written from these files alone.
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from . import cross_validate, pretrain
from .arguments import ReproduceArguments
from .external import write_external_table
from .parsing import option_names, option_words, parse
from .study_records import make_record, record_path, write_record
from .study_tables import planned, tables

logger = logging.getLogger("sssd_hf")
PLAN_KEYS = {"data", "protocols", "variants"}


@dataclass(frozen=True)
class StudyRun:
    """One variant on one split with one seed; options beside those of the recipe."""

    variant: str
    split: str
    seed: int
    options: dict[str, Any]
    external: tuple[str, ...]


def read_plan(recipe: str) -> dict[str, Any]:
    """The recipe's section "reproduce".

    Raises:
        ValueError: there is none, or it is of another form.
    """
    if not recipe or not Path(recipe).is_file():
        raise ValueError(f"--recipe {recipe}: there is no such file; name a recipe with a plan.")
    content = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
    plan = content.get("reproduce") if isinstance(content, dict) else None
    if not isinstance(plan, dict) or set(plan) != PLAN_KEYS:
        found = sorted(plan) if isinstance(plan, dict) else "nothing"
        raise ValueError(
            f"--recipe {recipe}: its section reproduce has {found}; expected "
            f"{', '.join(sorted(PLAN_KEYS))}."
        )
    return plan


def list_runs(plan: dict[str, Any], arguments: ReproduceArguments) -> list[StudyRun]:
    """The runs asked for, protocol by protocol, run by run, so that an early end leaves pairs.

    Raises:
        ValueError: a variant or protocol that the plan does not have.
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
    for protocol in (plan["protocols"][name] for name in chosen["protocols"]):
        shared = {k: v for k, v in protocol.items() if k not in ("title", "columns", "seeds")}
        for split, seed in planned(protocol):
            for variant in chosen["variants"]:
                own = dict(plan["variants"][variant] or {})
                own.pop("title", None)
                external = tuple(own.pop("external", ()))
                runs.append(StudyRun(variant, split, seed, {**shared, **own}, external))
    return runs


def _words(options: dict[str, Any]) -> list[str]:
    words = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        texts = [str(v).lower() if isinstance(v, bool) else str(v) for v in values]
        words += [f"--{name}", *texts] if value is not None else []
    return words


def perform(run: StudyRun, arguments: ReproduceArguments, recipe: str, data: str) -> None:
    """The three stages of a run, and its record."""
    place = Path(arguments.output_dir) / run.variant / f"{run.split}-seed_{run.seed}"
    words = ["--recipe", recipe, "--data_dir", arguments.data_dir, "--split_column", run.split]
    words += [*_words(run.options), "--seeds", str(run.seed), "--output_dir", str(place)]
    folders = {stage: place / run.split / stage for stage in ("finetune", "evaluate")}
    if run.external:
        folders["pretrain"] = place / "pretrain"
        pretrain_on_more(run, arguments, recipe, place)
        words += ["--skip_pretraining", "true", "--model_name_or_path", str(place / "pretrain")]
    elif not run.options.get("skip_pretraining"):
        folders["pretrain"] = place / run.split / "pretrain"
    cross_validate.main(words)
    record = make_record(folders, data, run.variant, run.split, run.seed)
    name = Path(recipe).stem
    write_record(
        record_path(Path(arguments.results_dir), name, run.variant, run.split, run.seed), record
    )


def pretrain_on_more(
    run: StudyRun, arguments: ReproduceArguments, recipe: str, place: Path
) -> None:
    """Pretraining on the training images of the target and on those of other sets, without what is
    a near copy of a test image."""
    if (place / "pretrain" / "all_results.json").is_file():
        return
    beside = Path(arguments.external_dir or Path(arguments.data_dir).parent)
    folders = [beside / name for name in run.external]
    table = place / "external" / "images.csv"
    common = yaml.safe_load(Path(recipe).read_text(encoding="utf-8")).get("common") or {}
    train = run.options.get("train_split", common.get("train_split"))
    write_external_table(table, Path(arguments.data_dir), run.split, train, folders)
    known = option_names("pretrain") - {"train_split"}
    words = ["--recipe", recipe, *_words({k: v for k, v in run.options.items() if k in known})]
    words += ["--data_dir", str(table), "--split_column", "part", "--train_split", "train"]
    words += ["--label_column_name", "", "--group_column_name", "", "--train_val_split", "0"]
    words += ["--seed", str(run.seed), "--resume_from_checkpoint", "latest"]
    pretrain.main([*words, "--output_dir", str(place / "pretrain")])


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    given = option_words(argv)
    recipe = next((words[-1] for name, words in given if name == "recipe"), "")
    recipe = recipe.partition("=")[2] or recipe
    (arguments,) = parse(
        "reproduce", __doc__, [w for name, words in given if name != "recipe" for w in words]
    )
    plan = read_plan(recipe)
    name, results_dir = Path(recipe).stem, Path(arguments.results_dir)
    runs = list_runs(plan, arguments)
    left = [
        run
        for run in runs
        if not record_path(results_dir, name, run.variant, run.split, run.seed).is_file()
    ]
    if not arguments.tables_only:
        if left and not arguments.data_dir:
            raise ValueError("--data_dir: name the folder of the images.")
        for number, run in enumerate(left, 1):
            print(
                f"\n=== run {number} of {len(left)} ({len(runs) - len(left)} are there already): "
                f"{run.variant}, {run.split}, seed {run.seed}",
                flush=True,
            )
            perform(run, arguments, recipe, plan["data"])
    text = tables(results_dir, name, plan)
    path = results_dir / f"{name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"{text}\nwritten to {path}")
    return 0
