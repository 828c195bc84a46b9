"""Publishing to a server that fails, with the real client."""

import hashlib
import logging
import random

import pytest
from huggingface_hub import HfApi
from loopback import TOKEN

from sssd_hf.hub.push import ATTEMPTS, HubError, Target, open_repository, push

CARD = b"---\nlicense: mit\n---\n# A card\n"
TARGET = Target("tester/model")


@pytest.fixture
def files(tmp_path):
    """A small file, a card, and weights so large that they go by LFS."""
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(random.Random(0).randbytes(20_000))
    (tmp_path / "config.json").write_text('{"a": 1}')
    return {
        "config.json": tmp_path / "config.json",
        "README.md": CARD,
        "pretraining/model.safetensors": weights,
    }


def contents(files):
    return {p: f if isinstance(f, bytes) else f.read_bytes() for p, f in files.items()}


def has_all(hub, files, repo_id="tester/model", revision="main"):
    there = hub.files(repo_id, revision)
    return all(there.get(path) == data for path, data in contents(files).items())


def test_all_files_arrive_in_one_commit_in_a_private_repository(hub, files, tmp_path):
    pushed = push(files, TARGET, "first", sleep=pytest.fail)
    assert pushed.uploaded == sorted(files)
    repository = hub.repositories["tester/model"]
    assert repository.private
    assert repository.messages == ["initial commit", "first"]
    assert repository.branches["main"] == pushed.commit
    # read back by the client: metadata, etag, download
    folder = HfApi().snapshot_download("tester/model", cache_dir=tmp_path / "cache")
    for path, data in contents(files).items():
        with open(f"{folder}/{path}", "rb") as file:
            assert hashlib.sha256(file.read()).digest() == hashlib.sha256(data).digest()


def test_a_second_push_uploads_nothing(hub, files):
    first = push(files, TARGET, "first")
    hub.requests.clear()
    second = push(files, TARGET, "second")
    assert second.uploaded == []
    assert second.commit == first.commit
    assert hub.count("PUT|preupload|POST .*/commit/") == 0
    # and a change of one file uploads that file
    files["config.json"].write_text('{"a": 2}')
    assert push(files, TARGET, "third").uploaded == ["config.json"]
    assert hub.count("PUT") == 0
    assert has_all(hub, files)


def test_branch_and_tag(hub, files):
    push(files, TARGET, "first")
    files["config.json"].write_text('{"a": 2}')
    target = Target("model", revision="trial", tag="v1")  # of the token's owner
    pushed = push(files, target, "second")
    assert pushed.repo_id == "tester/model"
    assert has_all(hub, files, revision="trial")
    assert hub.files("tester/model")["config.json"] == b'{"a": 1}'
    assert hub.repositories["tester/model"].tags == {"v1": pushed.commit}
    assert "config.json" in HfApi().list_repo_files("tester/model", revision="v1")
    assert push(files, target, "again").uploaded == []  # the tag is where it should be
    files["config.json"].write_text('{"a": 3}')
    with pytest.raises(HubError, match=r"--hub_tag v1: .* another commit"):
        push(files, target, "third")
    assert hub.repositories["tester/model"].messages == ["initial commit", "first", "second"]


STAGES = (
    "POST /api/repos/create", "GET /api/models/tester/model$", "GET .*/revision/", "GET .*/tree/",
    "GET .*/refs", "POST /api/validate-yaml", "POST .*/preupload", "POST .*/objects/batch",
    "PUT /storage", "POST .*/commit/", "POST .*/tag/",
)  # fmt: skip


@pytest.mark.parametrize("how", [500, 429, 503, "cut", "cut answer"])
@pytest.mark.parametrize("stage", STAGES)
def test_one_failure_anywhere_is_made_up_for(hub, files, stage, how, caplog):
    caplog.set_level(logging.INFO)
    hub.fail(stage, how)
    pauses = []
    target = Target("tester/model", tag="v1")
    push(files, target, "first", sleep=pauses.append)
    assert not hub.faults[0].count  # it did fail
    assert has_all(hub, files)
    assert hub.repositories["tester/model"].messages == ["initial commit", "first"]  # once
    assert hub.repositories["tester/model"].tags == {"v1": list(
        hub.repositories["tester/model"].commits)[-1]}  # fmt: skip
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("how", [500, "cut"])
@pytest.mark.parametrize("stage", ["POST .*/commit/", "PUT /storage", "POST .*/objects/batch"])
def test_where_it_keeps_failing_the_repository_stays_as_it_was(hub, files, stage, how, caplog):
    push({"config.json": files["config.json"]}, TARGET, "first")
    before = dict(hub.files("tester/model"))
    hub.fail(stage, how, count=10_000)
    pauses = []
    with pytest.raises(HubError, match=rf"could not be reached.*{ATTEMPTS} attempts"):
        push(files, TARGET, "second", sleep=pauses.append)
    assert hub.files("tester/model") == before
    assert len(pauses) == ATTEMPTS - 1
    hub.faults.clear()
    assert set(push(files, TARGET, "second").uploaded) == set(files) - {"config.json"}
    assert has_all(hub, files)


def test_pauses_grow_or_are_what_the_server_asks_for(hub, files, monkeypatch):
    monkeypatch.setattr("sssd_hf.hub.push.FIRST_PAUSE", 1.0)
    pauses = []
    hub.fail("POST /api/repos/create", 500, count=3)
    hub.fail("POST .*/commit/", 429, headers={"Retry-After": "7"})
    push(files, TARGET, "first", sleep=pauses.append)
    assert pauses == [1, 2, 4, 7]


def test_without_a_network(no_network, files):
    with pytest.raises(HubError, match=r"could not be reached.*Is there a network"):
        push(files, TARGET, "first", sleep=lambda seconds: None)


def test_offline_mode_is_named(hub, files, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        push(files, TARGET, "first", sleep=pytest.fail)


def test_without_a_token_nobody_is_asked(hub, files, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"no token.*hf auth login"):
        push(files, TARGET, "first")
    assert hub.requests == []


@pytest.mark.parametrize("repo_id", ["tester/model", "model"])
def test_a_wrong_token_is_not_tried_again(hub, files, monkeypatch, repo_id):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "w" * 34)
    with pytest.raises(HubError, match="does not know the token") as error:
        push(files, Target(repo_id), "first", sleep=pytest.fail)
    assert "w" * 10 not in str(error.value)


def test_a_name_of_others_is_refused_clearly(hub, files):
    with pytest.raises(HubError, match=r"--hub_model_id strangers/model: .*(does not let|no such)"):
        push(files, Target("strangers/model"), "first", sleep=pytest.fail)


def test_a_public_repository_takes_no_private_model(hub, files):
    push(files, Target("tester/open", private=False), "first")
    assert not hub.repositories["tester/open"].private
    with pytest.raises(HubError, match="there already, and public"):
        open_repository(Target("tester/open"))


def test_metadata_that_the_hub_refuses(hub, files):
    files["README.md"] = CARD.replace(b"mit", b"not-a-license")
    with pytest.raises(HubError, match=r"license.*must be one of"):
        push(files, TARGET, "first", sleep=pytest.fail)
    assert list(hub.files("tester/model")) == [".gitattributes"]


def test_a_private_repository_is_closed_to_strangers(hub, files, monkeypatch, tmp_path):
    from huggingface_hub.errors import RepositoryNotFoundError

    push(files, TARGET, "first")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RepositoryNotFoundError, match="private"):
        HfApi().hf_hub_download("tester/model", "config.json", cache_dir=tmp_path / "a")


def test_a_token_in_a_servers_answer_is_not_repeated(hub, files):
    hub.fail("POST /api/repos/create", 400, headers={"X-Error-Message": f"bad {TOKEN}"})
    with pytest.raises(HubError) as error:
        push(files, TARGET, "first", sleep=pytest.fail)
    assert TOKEN not in str(error.value)
    assert error.value.__cause__ is None
