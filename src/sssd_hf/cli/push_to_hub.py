"""Publishing a model on the Hub, with a card that is written from its results.

`python scripts/push_to_hub.py --model_dir runs/finetuned --evaluation_dir runs/evaluation
--hub_model_id OWNER/NAME` pushes the weights, config, processor, code, recipe, results, card and
the figures without images, in one commit, into a private repository. Whatever else lies there is
named and stays. Log in first (`hf auth login`, or HF_TOKEN). A second push uploads what changed.
"""

import logging
from pathlib import Path

from ..hub.cards import CardOptions, write_card
from ..hub.publishing import log_refused, plan_files
from ..hub.push import Target, full_name, push, require_token
from .arguments import PushArguments
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
