"""Publishing a model on the Hub, with a card that is written from its results.

`python scripts/push_to_hub.py --model_dir runs/finetuned --evaluation_dir runs/evaluation
--hub_model_id OWNER/NAME` pushes the weights, config, processor, code, recipe, results, card and
the figures without images, in one commit, into a private repository. Whatever else lies there is
named and stays. Of a fine-tuned classifier a plain ViT is published, see --form. Log in first (`hf
auth login`, or HF_TOKEN). A second push uploads what changed.
"""

import json
import logging
import shutil
from pathlib import Path

from ..hub.cards import CardOptions, write_card
from ..hub.publishing import log_refused, plan_files
from ..hub.push import Target, full_name, push, require_token
from . import export
from .arguments import PushArguments
from .common import check_checkpoint
from .parsing import parse
from .uploads import repository_of, retry_command, telling_how_to_repeat

logger = logging.getLogger("sssd_hf")


def card_options(arguments: PushArguments, repo_id: str) -> CardOptions:
    return CardOptions(
        repo_id,
        arguments.license,
        arguments.license_name,
        arguments.dataset_title,
        arguments.base_model,
        arguments.watts,
    )


def plain_form(folder: Path) -> Path:
    """The stock model that a fine-tuned classifier in `folder` is, exported into its folder
    `plain`; `folder` itself where it is something else, or no stock model can express it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "SSSDForImageClassification" not in (config.get("architectures") or []):
        return folder
    plain, results = folder / "plain", folder / "plain" / "all_results.json"
    files = [folder / "config.json", *folder.glob("model*.safetensors")]  # whole or in shards
    newest = max(file.stat().st_mtime for file in files)
    if results.is_file() and results.stat().st_mtime > newest:
        return plain  # else every push would upload other results
    to = "vit" if config.get("pooling", "cls") == "cls" else "dinov2"
    words = ["--model_name_or_path", str(folder), "--to", to, "--output_dir", str(plain)]
    try:
        export.main([*words, "--overwrite_output_dir", "true"])
    except ValueError as error:
        logger.warning(f"published as it is, with remote code: {error}")
        return folder
    for name in ("finetune_recipe.yaml", "curves.png"):  # how it was made is published with it
        if (folder / name).is_file():
            shutil.copyfile(folder / name, plain / name)
    return plain


def main(argv: list[str] | None = None) -> int:
    (arguments,) = parse("push_to_hub", __doc__, argv)
    folder = Path(arguments.model_dir)
    evaluation, pretraining, training, audit = (
        Path(value) if value else None
        for value in (
            arguments.evaluation_dir,
            arguments.pretraining_dir,
            arguments.training_dir,
            arguments.audit_file,
        )
    )
    repo_id = repository_of(arguments.hub_model_id, folder)
    check_checkpoint(str(folder), "--model_dir")
    if arguments.form == "plain" and not arguments.card_only and (folder / "config.json").is_file():
        published = plain_form(folder)
        training = training or (folder if published != folder else None)
        folder = published
    asks = not (arguments.card_only or arguments.dry_run)
    with telling_how_to_repeat(folder, retry_command(arguments)):
        if asks:
            require_token()
            repo_id = full_name(repo_id)  # the card's examples name the owner too
        options = card_options(arguments, repo_id)
        card = write_card(
            folder, evaluation, pretraining, training, audit, options, pretraining is not None
        )
        logger.info(f"the card: {card}" + ("" if evaluation else " (it says: not evaluated)"))
        if arguments.card_only:
            return 0
        plan = plan_files(folder, evaluation, pretraining, arguments.include)
        log_refused(plan.refused)
        size = f"{len(plan.files)} files, {plan.size() / 1e6:.1f} MB"
        if arguments.dry_run:
            print("\n".join([f"would be published ({size}):", *sorted(plan.files)]))
            return 0
        target = Target(
            repo_id, arguments.hub_private_repo, arguments.hub_revision, arguments.hub_tag
        )
        logger.info(f"publishing at {repo_id}: {size}")
        print(push(plan.files, target, arguments.commit_message).url)
    return 0
