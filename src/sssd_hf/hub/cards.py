"""The model card: README.md of a model's folder, written from what was measured and recorded."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .card_rules import check_card
from .card_sources import Sources, read_sources
from .card_text import (
    ALL_IMAGES,
    EVERY_CARD,
    MARK,
    METRICS,
    audit_facts,
    classes_meant,
    evaluation_facts,
    fenced,
    markdown,
    preparation_text,
    stage_facts,
)
from .clean import clean_command, clean_text, clean_value, is_on_hub

TEMPLATE = Path(__file__).with_name("card_template.md")
TAGS = ("sssd", "medical-imaging", "masked-autoencoder", "not-for-clinical-use")
FORM = "## This form\n"  # heads the section that export.py adds to a card
MAX_RESULTS = 12  # metrics in the metadata
NOT_NAMED = "data that no record names"


@dataclass(frozen=True)
class CardOptions:
    """What no file tells, and a person may.

    Args:
        repo_id: OWNER/NAME on the Hub, for the examples; default: a placeholder.
        license, license_name: of the weights, as the Hub names them; None: not stated.
        dataset_title: what the data are called; a folder's own name is not shown.
        base_model: the Hub's model it was trained from, where the files don't tell.
        watts: of the machine while it trained, for the energy; None: an assumption.
    """

    repo_id: str | None = None
    license: str | None = None
    license_name: str | None = None
    dataset_title: str | None = None
    base_model: str | None = None
    watts: float | None = None


def metadata_of(sources: Sources, options: CardOptions, title: str) -> Any:
    """The card's `ModelCardData`: what the Hub shows, filters and compares by."""
    from huggingface_hub import ModelCardData

    recipe = sources.recipe
    dataset = recipe.get("dataset_name")
    datasets = [dataset] if dataset and is_on_hub(dataset, "dataset") else None
    base = options.base_model or start_of(sources)
    found = sources.evaluation
    # figures on images of the training have no place among those that the Hub compares
    evaluated = (
        results_of(sources, options) if found and not found.get("num_test_images_seen") else None
    )
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=(
            "image-classification" if sources.stage == "finetune" else "image-feature-extraction"
        ),
        license=options.license,
        license_name=options.license_name,
        base_model=base,
        datasets=datasets,
        tags=list(TAGS),
        metrics=sorted({result.metric_type for result in evaluated}) if evaluated else None,
        model_name=title if evaluated else None,
        eval_results=evaluated or None,
    )


def start_of(sources: Sources) -> str | None:
    """The Hub's model that the training, or the pretraining before it, started from."""
    recipes = [sources.recipe, sources.pretraining[1] if sources.pretraining else {}]
    names = [recipe.get("model_name_or_path") for recipe in recipes]
    return next((name for name in names if name and is_on_hub(name)), None)


def results_of(sources: Sources, options: CardOptions) -> list[Any]:
    """An `EvalResult` for each metric, with its interval, and how it was measured."""
    from huggingface_hub import EvalResult

    found, recipe = sources.evaluation, sources.recipe
    dataset = recipe.get("dataset_name")
    # all images were tested: of which data no record tells, and hardly of the training's
    whole = found.get("test_split") == ALL_IMAGES or bool(found.get("other_data"))
    on_hub = bool(dataset) and not whole and is_on_hub(dataset, "dataset")
    facts = evaluation_facts(found, sources.results, sources.config)
    counts = (
        "num_test_images_seen",
        "num_test_images_pretrained_on",
        "num_groups_shared_with_training",
    )
    meant = classes_meant(found, plain=True)
    of_training = {name: found[name] for name in counts if found.get(name) is not None}
    results = []
    for key, (name, _) in METRICS.items():
        value = found.get(key)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            continue
        arguments = {
            "interval": (found.get("intervals") or {}).get(key),
            "interval_method": clean_text(str(found.get("interval_method", "not recorded"))),
            "num_test_images": found.get("num_test_images"),
            "num_test_groups": found.get("num_test_groups"),
        }
        results.append(
            EvalResult(
                task_type="image-classification",
                task_name="Image classification",
                dataset_type=dataset if on_hub else "imagefolder",
                dataset_name=NOT_NAMED if whole else title_of_data(sources, options),
                dataset_split=clean_text(str(found.get("test_split") or "test")),
                dataset_revision=recipe.get("dataset_revision") if on_hub else None,
                dataset_args={**of_training, "protocol": facts["protocol_plain"]},
                metric_type=key,
                metric_name=name + meant.get(key, ""),
                metric_value=round(float(value), 4),
                metric_args={k: v for k, v in arguments.items() if v is not None},
            )
        )
    return results[:MAX_RESULTS]


def title_of_data(sources: Sources, options: CardOptions) -> str:
    """What the data are called, unescaped; never the name of a folder."""
    dataset = sources.recipe.get("dataset_name")
    if options.dataset_title:
        return " ".join(options.dataset_title.split())
    return dataset if dataset and is_on_hub(dataset, "dataset") else "images that are not published"


def use_examples(sources: Sources, repo_id: str, with_pretraining: bool) -> list[dict[str, str]]:
    """How to load the model: text and code."""
    load = (
        'from transformers import pipeline\n\nclassify = pipeline("image-classification", '
        f'model="{repo_id}"{{more}})\nprint(classify("image.png"))'
    )
    install = "# pip install the sssd_hf package first\nimport sssd_hf  # registers the classes\n"
    without = "Without it, by the code in this repository; read it before you trust it:"
    uses = []
    if sources.config.get("model_type") != "sssd":
        uses.append(("With transformers alone, without remote code:", load.format(more="")))
    elif sources.stage == "finetune":
        uses.append(("With the package:", install + load.format(more="")))
        uses.append((without, load.format(more=", trust_remote_code=True")))
    else:
        model = f'model = AutoModelForPreTraining.from_pretrained("{repo_id}"{{more}})'
        head = "from transformers import AutoModelForPreTraining\n\n"
        uses.append(("With the package:", install + head + model.format(more="")))
        uses.append((without, head + model.format(more=", trust_remote_code=True")))
        train = f"python scripts/finetune.py --model_name_or_path {repo_id} --data_dir YOUR_IMAGES"
        uses.append(("To train a classifier on it:", train))
    if with_pretraining:
        code = (
            "from transformers import AutoModelForPreTraining\n\nmodel = AutoModelForPreTraining."
            f'from_pretrained(\n    "{repo_id}", subfolder="pretraining", trust_remote_code=True\n)'
        )
        text = (
            "The pretraining checkpoint (encoder, decoder and the state of self-distillation), for "
            "further pretraining; with the package imported, without `trust_remote_code`:"
        )
        uses.append((text, code))
    return [
        {"text": text, "code": fenced(code, "sh" if code.startswith("python ") else "python")}
        for text, code in uses
    ]


def commands_of(sources: Sources) -> str:
    """The commands that repeat it, from the recipes that are published with it."""
    lines = []
    if sources.pretraining and sources.pretraining[1]:
        lines.append(
            "python scripts/pretrain.py --recipe pretraining/pretrain_recipe.yaml "
            f"{data_option(sources.pretraining[1])} --output_dir runs/pretrained"
        )
    if sources.recipe:
        start = sources.recipe.get("model_name_or_path")
        shown = "runs/pretrained" if start and not is_on_hub(start) else None
        lines.append(
            f"python scripts/{sources.stage}.py --recipe {sources.stage}_recipe.yaml "
            f"{data_option(sources.recipe)} "
            + (f"--model_name_or_path {shown} " if shown else "")
            + f"--output_dir runs/{'finetuned' if sources.stage == 'finetune' else 'pretrained'}"
        )
    command = (sources.evaluation or {}).get("command")
    if command:
        words = command if isinstance(command, str) else " ".join(map(str, command))
        lines.append(clean_command(words))
    return "\n".join(" ".join(line.split()) for line in lines)


def data_option(recipe: dict[str, Any]) -> str:
    """The option that says where the images are, where the published recipe does not."""
    dataset = recipe.get("dataset_name")
    return "" if dataset and is_on_hub(dataset, "dataset") else "--data_dir <data_dir>"


def limits_of(sources: Sources) -> list[str]:
    """What the records say about how far the figures reach."""
    limits = ["From how many hospitals and devices the images come is not recorded here."]
    found = sources.evaluation
    if not found:
        limits.append("Not evaluated.")
    else:
        count, groups = found.get("num_test_images") or 0, found.get("num_test_groups")
        if groups is None:
            limits.append(
                "The intervals take images for independent: they are too narrow if patients have "
                "several."
            )
        if (groups or count) < 200:
            what = f"{groups} patients or groups" if groups else f"{count} images"
            limits.append(f"Tested on {what}: differences within the intervals may be chance.")
        if not found.get("subgroups"):
            limits.append("Not evaluated by subgroup.")
        limits += newness_limits(found)
    if not sources.audit:
        limits.append("The data were not audited with this card.")
    if sources.stage == "finetune" and not sources.config.get("calibration"):
        limits.append("Not calibrated: its scores are not to be read as probabilities.")
    return limits


def groups_text(sources: Sources) -> str:
    """What the splits keep together, as far as is known: a split column may cut patients."""
    group = sources.recipe.get("group_column_name")
    if not group:
        return "not recorded"
    named = markdown(f"images with the same {group}")
    shared = (sources.evaluation or {}).get("num_groups_shared_with_training")
    if shared:
        return f"not {named}: the given splits have some of them in several parts"
    if shared is None:  # a column, or a file of splits, may cut them
        return f"not checked of {named}: no test has looked for them in several parts"
    return named


def newness_limits(found: dict[str, Any]) -> list[str]:
    """How far the tested images are known to be new to the model, and of another place."""
    if found.get("other_data"):
        return [
            "The tested images were said to be of another data set than the training's. Of which, "
            "and whether the training had none of them, is not recorded."
        ]
    limits = []
    if found.get("num_test_images_seen") is None:
        limits.append("Whether the training had some of the tested images is not recorded.")
    elif found.get("num_test_images_pretrained_on") is None:
        limits.append(
            "Whether the checkpoint it started from had seen some of the tested images is not "
            "recorded."
        )
    shared = found.get("num_groups_shared_with_training")
    if shared is None and found.get("num_test_groups") is not None:
        limits.append("Whether the training had some of the tested patients is not recorded.")
    if found.get("test_split") == ALL_IMAGES:
        limits.append(
            "Whether the tested images are of another hospital or device than those of the "
            "training is not recorded."
        )
    else:
        limits.append("No evaluation on images of another hospital or device was given.")
    return limits


def build_card(
    sources: Sources, options: CardOptions = CardOptions(), with_pretraining: bool = False
) -> Any:
    """The `huggingface_hub.ModelCard`.

    Args:
        with_pretraining: the repository also holds the pretraining checkpoint, in `pretraining/`.

    Raises:
        ValueError: the Hub would refuse its metadata; the message says what.
    """
    from huggingface_hub import ModelCard

    config, repo_id = sources.config, options.repo_id or "OWNER/NAME"
    names = config.get("id2label") or {}
    labels = [str(names[key]) for key in sorted(names, key=int)]
    title = repo_id.split("/")[-1] if options.repo_id else f"sssd-{sources.stage}"
    kind = {
        "finetune": f"A vision transformer that sorts images into {len(labels)} classes",
        "pretrain": "A masked autoencoder's encoder and decoder, to train classifiers from",
    }[sources.stage]
    side = config.get("image_size")
    channels = {1: "grey", 3: "RGB"}.get(config.get("num_channels"), "")
    hidden = f"{config.get('num_hidden_layers')} layers of width {config.get('hidden_size')}"
    pretrained = " It was pretrained by SSSD, a masked autoencoder with self-distillation from decoder to encoder."  # noqa: E501
    metadata = metadata_of(sources, options, title)
    counts = sources.results.get("num_train_images")
    stages = []
    if sources.pretraining:
        stages.append(stage_facts("pretrain", *sources.pretraining, options.watts))
    if sources.results or sources.recipe:
        stages.append(stage_facts(sources.stage, sources.results, sources.recipe, options.watts))
    evaluation = sources.evaluation and evaluation_facts(
        sources.evaluation, sources.results, config
    )
    commands = commands_of(sources)
    license_name = options.license_name or options.license
    card = ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        title=markdown(title),
        summary=f"{kind}; {hidden}, {channels} images of {side} pixels."
        + (pretrained if sources.stage == "pretrain" or sources.pretraining else ""),
        data={
            "title": markdown(title_of_data(sources, options)),
            "count": counts,
            "splits": markdown(splits_text(sources.recipe)),
            "groups": groups_text(sources),
            "preparation": markdown(preparation_text(config)),
        },
        labels=", ".join(map(markdown, labels)) if sources.stage == "finetune" else "",
        positive=markdown(labels[1]) if len(labels) == 2 else "",
        audit=sources.audit and audit_facts(sources.audit),
        stages=stages,
        evaluation=evaluation,
        not_new=evaluation["not_new"] if evaluation else [],
        limits=limits_of(sources),
        uses=use_examples(sources, repo_id, with_pretraining),
        commands_text=(
            "With the recipes in this repository, which hold every option (places in <> are yours):"
            if commands
            else "The commands were not recorded."
        ),
        commands=fenced(commands, "sh") if commands else "",
        license_text=(
            f"Weights: {markdown(license_name)}. " if license_name else
            "No licence of the weights was stated: ask their authors before you use them. "
        )
        + "The model's code: Apache-2.0.",
        **EVERY_CARD,
    )  # fmt: skip
    check_card(str(card))
    return card


def splits_text(recipe: dict[str, Any]) -> str:
    """Which images the training read."""
    column, train = recipe.get("split_column"), recipe.get("train_split")
    if column:
        return f"split by the column {clean_value(column)}, training on {clean_value(train)}"
    return ""


def unfinished_card(config: dict[str, Any], message: str) -> str:
    """The README.md of a state that is published while the training goes on."""
    from huggingface_hub import ModelCardData

    stage = Sources(config, {}, {}, None, None, None).stage
    task = "image-classification" if stage == "finetune" else "image-feature-extraction"
    data = ModelCardData(library_name="transformers", pipeline_tag=task, tags=["sssd"])
    text = (
        f"---\n{data.to_yaml()}\n---\n\n"
        f"**Not evaluated, and not finished: {markdown(message)}.**\n\n"
        "Research software, not a medical device. This state of a training under way is replaced "
        f"by later ones.\n\n<!-- {MARK} -->\n"
    )
    check_card(text)
    return text


def write_card(
    model_dir: Path,
    evaluation_dir: Path | None = None,
    pretraining_dir: Path | None = None,
    training_dir: Path | None = None,
    audit_file: Path | None = None,
    options: CardOptions = CardOptions(),
    with_pretraining: bool = False,
) -> Path:
    """Write the model's README.md from what its folder, and the others, hold -> its path.

    Raises:
        ValueError: see `read_sources` and `build_card`; or there is a README.md by somebody else.
    """
    path = model_dir / "README.md"
    old = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if old and MARK not in old and FORM not in old:
        raise ValueError(
            f"{path} was not written by this package, or was changed: move it away. Cards are "
            "written from measured results alone."
        )
    sources = read_sources(model_dir, evaluation_dir, pretraining_dir, training_dir, audit_file)
    text = str(build_card(sources, options, with_pretraining))
    if FORM in old:  # what an export wrote about itself
        text = f"{text.rstrip()}\n\n{old[old.index(FORM) :]}"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path
