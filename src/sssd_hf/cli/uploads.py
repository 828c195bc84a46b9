"""--push_to_hub of a training: the newest state in the background, the result at the end."""

import json
import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from transformers import PreTrainedModel

from ..hub.background import BackgroundUploads
from ..hub.cards import unfinished_card
from ..hub.publishing import log_refused, plan_files
from ..hub.push import HubError, Target, full_name, open_repository, push, require_token
from ..hub.remote_code import code_files, config_with_code
from .arguments import PushArguments, TrainingArguments
from .common import processor_fields
from .parsing import as_dict

logger = logging.getLogger("sssd_hf")
LAST_WAIT = 30.0  # seconds for an upload under way when the training ends


def repository_of(hub_model_id: str | None, folder: Path) -> str:
    """The repository's name as given, or the folder's.

    Raises:
        ValueError: it is no name of a repository.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name = hub_model_id or folder.resolve().name
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"--hub_model_id {name}: {error} Expected OWNER/NAME or NAME.") from error
    return name


def retry_command(arguments: PushArguments) -> str:
    """The command that publishes so again."""
    defaults, words = as_dict(PushArguments()), []
    for name, value in as_dict(arguments).items():
        if value is not None and (value != defaults[name] or name in ("model_dir", "hub_model_id")):
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}", *(str(v) for v in values)]
    return shlex.join(["python", "scripts/push_to_hub.py", *words])


@contextmanager
def telling_how_to_repeat(folder: Path, command: str) -> Iterator[None]:
    """A HubError from inside also says that `folder` is intact, and what command tries again."""
    try:
        yield
    except HubError as error:
        raise HubError(
            f"{error}\n{folder} is as it was, and complete. To publish it later:\n  {command}",
            error.transient,
        ) from None


class RunUploads:
    """The uploads of one training, by its main process.

    Args:
        target: where to; its tag is for the result alone.
        files: what is published beside the weights while the training goes on: config, processor
            and code, by their paths.
        total_steps: of the training.
        averaged: the result is the weights' average; what is published on the way is not.
    """

    def __init__(
        self,
        target: Target,
        output: Path,
        files: dict[str, Path | bytes],
        total_steps: int,
        averaged: bool = False,
    ):
        self.target, self.output, self.files, self.total_steps = target, output, files, total_steps
        self.averaged = averaged
        untagged = replace(target, tag=None)
        self.background = BackgroundUploads(
            lambda states, message, sleep: push(states, untagged, message, sleep=sleep),
            output / ".uploads",
        )

    @property
    def repo_id(self) -> str:
        return self.target.repo_id

    def offer(self, checkpoint: Path) -> None:
        """Publish the weights of a checkpoint's folder, some time; returns at once."""
        step = int(checkpoint.name.rsplit("-", 1)[1])
        message = f"Training, step {step} of {self.total_steps}"
        message += ", weights that are not averaged yet" if self.averaged else ""
        config = json.loads(self.files["config.json"])
        files = {
            **self.files,
            "README.md": unfinished_card(config, message).encode(),
            "model.safetensors": checkpoint / "model.safetensors",
        }
        self.background.offer(files, message)

    def finish(self) -> None:
        """Publish the output folder.

        Raises:
            HubError: with the command that tries again.
        """
        if not self.background.close(LAST_WAIT):
            logger.warning("the upload of an earlier state is given up: the result comes first")
        target = self.target
        again = PushArguments(
            model_dir=str(self.output),
            hub_model_id=target.repo_id,
            hub_private_repo=target.private,
            hub_revision=target.revision,
            hub_tag=target.tag,
        )
        with telling_how_to_repeat(self.output, retry_command(again)):
            plan = plan_files(self.output)
            log_refused(plan.refused)
            push(plan.files, target, "The trained model")


def start_uploads(
    training: TrainingArguments,
    accelerator: Accelerator,
    model: PreTrainedModel,
    statistics: tuple[list[float], list[float]],
    total_steps: int,
) -> RunUploads | None:
    """Open the repository before the training starts; None without --push_to_hub, and in all but
    the main process.

    Raises:
        HubError: there is no token, or the Hub refuses it. Where the Hub can't be reached, the
            training starts all the same.
        ValueError: --hub_model_id is no name.
    """
    if not training.push_to_hub or not accelerator.is_main_process:
        return None
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # they would run into the training's own
    output = Path(training.output_dir)
    repo_id = repository_of(training.hub_model_id, output)
    require_token()

    target = Target(repo_id, training.hub_private_repo, training.hub_revision, training.hub_tag)
    try:
        target = replace(target, repo_id=full_name(repo_id))
        open_repository(target)
        logger.info(f"publishing at {target.repo_id}, in the background")
    except HubError as error:
        if not error.transient:
            raise
        logger.warning(f"{error} The training starts; its states are published once that works.")
    files: dict[str, Path | bytes] = {path.name: path for path in code_files()}
    files["config.json"] = config_with_code(model).encode()
    processor = processor_fields(model.config, statistics)
    files["preprocessor_config.json"] = json.dumps(processor, indent=2).encode()
    averaged = bool(training.ema_decay)
    return RunUploads(target, output, files, total_steps, averaged)
