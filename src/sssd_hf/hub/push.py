"""Publishing on the Hub: one commit with what has changed, or none; repeated where the connection
fails."""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger("sssd_hf")
ATTEMPTS = 5
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds; doubled from one attempt to the next
TRANSIENT = (408, 409, 412, 425, 429, 500, 502, 503, 504)  # 409, 412: somebody else was committing
LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN, with a token that may write."


class HubError(OSError):
    """Nothing, or not all, could be published; the message says why. What is on this machine is
    untouched, and the repository is as before or has the whole commit. `transient`: the same may
    work later."""

    def __init__(self, message: str, transient: bool = False):
        super().__init__(message)
        self.transient = transient


@dataclass(frozen=True)
class Target:
    """Where to: OWNER/NAME (or NAME, of the token's owner), a branch, and a tag for the commit."""

    repo_id: str
    private: bool = True
    revision: str = "main"
    tag: str | None = None


@dataclass(frozen=True)
class Pushed:
    """What came of it: the repository's full name and address, the commit, the files uploaded."""

    repo_id: str
    url: str
    commit: str
    uploaded: list[str]


def without_token(text: str) -> str:
    """`text`, were the token in it, without it."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "<token>") if token else text


def require_token() -> None:
    """Raises HubError where there is none; asks nobody."""
    from huggingface_hub import get_token

    if not get_token():
        raise HubError(f"There is no token for the Hub. {LOG_IN}")


def status_of(error: BaseException | None) -> int | None:
    """The server's answer that an error is about, if any; the client wraps those of uploads."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return status
        error = error.__cause__
    return None


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    status = status_of(error)
    if status is not None:
        return status in TRANSIENT
    if isinstance(error, OfflineModeIsEnabled):
        return False
    # the client's HTTP library has had two names; its errors are the bases of the client's own
    http = tuple(c for c in HfHubHTTPError.__mro__ if c.__module__.startswith("httpx"))
    # JSONDecodeError: an error page where JSON was due; RuntimeError: wraps a failed upload
    return isinstance(error, (*http, ConnectionError, TimeoutError, RuntimeError,
                              json.JSONDecodeError))  # fmt: skip


def pause_before(attempt: int, error: Exception) -> float:
    """Seconds to wait before attempt 2, 3, ...: doubled each time, or what the server asks for."""
    response = getattr(error, "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    pause = float(asked) if asked.isdigit() else FIRST_PAUSE * 2 ** (attempt - 2)
    return min(pause, LONGEST_PAUSE)


def repeat(action: Callable[[], Any], what: str, sleep: Callable[[float], None]) -> Any:
    """`action()`, again after failures that may pass.

    Raises:
        HubError: it failed for good, or `ATTEMPTS` times.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except HubError:
            raise
        except Exception as error:
            first_line = without_token(str(error).strip().split("\n")[0] or type(error).__name__)
            if not is_transient(error):
                raise HubError(explain(error, what)) from None
            if attempt == ATTEMPTS:
                raise HubError(
                    f"{what}: the Hub could not be reached, or did not answer as it should, in "
                    f"{ATTEMPTS} attempts (the last: {first_line}). Is there a network? Try again "
                    "later.",
                    transient=True,
                ) from None
            pause = pause_before(attempt + 1, error)
            logger.warning(f"{what}: {first_line}; again in {pause:g} s")
            sleep(pause)


def explain(error: Exception, what: str) -> str:
    """A message for what repeating does not mend."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    status, detail = status_of(error), without_token(" ".join(str(error).split()))
    if isinstance(error, OfflineModeIsEnabled):
        return f"{what}: HF_HUB_OFFLINE is set: unset it to reach the Hub."
    if status == 401:
        return f"{what}: the Hub does not know the token, or not for this repository. {LOG_IN}"
    if status in (402, 403):
        return f"{what}: the Hub does not let this token do that ({detail}). {LOG_IN}"
    if status == 404:
        return (
            f"{what}: there is no such repository or branch, or this token may not see it "
            f"({detail}). {LOG_IN}"
        )
    return f"{what}: the Hub refused it ({detail})."


def full_name(repo_id: str, api: Any = None, sleep: Callable = time.sleep) -> str:
    """OWNER/NAME; of a NAME alone the token's owner is the owner.

    Raises:
        HubError: the Hub could not tell.
    """
    from huggingface_hub import HfApi

    if "/" in repo_id:
        return repo_id
    require_token()
    api = api or HfApi()
    return repeat(lambda: f"{api.whoami()['name']}/{repo_id}", f"--hub_model_id {repo_id}", sleep)


def open_repository(target: Target, api: Any = None, sleep: Callable = time.sleep) -> str:
    """Create the repository, private as the target says, and its branch, where they are not there
    yet -> its full name.

    Raises:
        HubError: it can't be; or it is public although the target is private.
    """
    from huggingface_hub import HfApi

    require_token()
    api = api or HfApi()
    what = f"--hub_model_id {target.repo_id}"

    def create() -> str:
        url = api.create_repo(target.repo_id, private=target.private, exist_ok=True)
        if target.private and api.model_info(url.repo_id).private is False:
            raise HubError(
                f"{what}: the repository is there already, and public. Pass --hub_private_repo "
                "false to publish in it, or name another."
            )
        if target.revision != "main":
            api.create_branch(url.repo_id, branch=target.revision, exist_ok=True)
        return url.repo_id

    return repeat(create, what, sleep)


def git_hash(data: bytes) -> str:
    """SHA-1 of a file as git has it."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def is_same(source: Path | bytes, remote: Any) -> bool:
    """Whether a file of the repository has the content of `source`; by size and hash."""
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if size != remote.size:
        return False
    if remote.lfs is None:
        return git_hash(source if isinstance(source, bytes) else source.read_bytes()) == (
            remote.blob_id
        )
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest() == remote.lfs.sha256
    with open(source, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == remote.lfs.sha256


def push(
    files: dict[str, Path | bytes],
    target: Target,
    message: str,
    api: Any = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Pushed:
    """Upload the files that the repository does not have as they are, in one commit; none where
    it has all. What it has beside them stays.

    Args:
        files: path in the repository -> file or bytes.
        api: an `HfApi`; by default that of the environment.

    Raises:
        HubError: see there.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = api or HfApi()
    repo_id = open_repository(target, api, sleep)
    what = f"{repo_id} ({target.revision})"

    def commit() -> Pushed:
        # looked at anew in each attempt: the last may have arrived although its answer did not
        head = api.model_info(repo_id, revision=target.revision).sha
        tree = api.list_repo_tree(repo_id, recursive=True, revision=head)
        there = {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}
        changed = [p for p, f in files.items() if p not in there or not is_same(f, there[p])]
        tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id).tags}
        if target.tag in tags and (changed or tags[target.tag] != head):
            raise HubError(
                f"--hub_tag {target.tag}: {repo_id} has this tag at another commit "
                f"({tags[target.tag][:8]}); name another: tags are not moved."
            )
        if changed:
            operations = [
                CommitOperationAdd(path, f if isinstance(f, bytes) else str(f))
                for path, f in files.items()
                if path in changed
            ]
            head = api.create_commit(
                repo_id,
                operations,
                commit_message=message,
                revision=target.revision,
                parent_commit=head,
            ).oid
        if target.tag and target.tag not in tags:
            api.create_tag(repo_id, tag=target.tag, revision=head, exist_ok=True)
        return Pushed(repo_id, f"{api.endpoint}/{repo_id}", head, sorted(changed))

    pushed = repeat(commit, what, sleep)
    if pushed.uploaded:
        logger.info(f"published {len(pushed.uploaded)} files as one commit: {pushed.url}")
    else:
        logger.info(f"nothing to upload: {pushed.url} has all {len(files)} files as they are here")
    return pushed
