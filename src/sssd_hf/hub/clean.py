"""What results and recipes say of the machine they come from is taken out before they are shown.

Paths, file names and the user's name become words such as `<data_dir>` or `<file>`; a name of a
model or data set on the Hub stays.
"""

import getpass
import json
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

# options and fields whose whole value is a place on this machine, relative ones too
PLACES = {
    "data_dir", "output_dir", "cache_dir", "resume_from_checkpoint", "output_file", "images",
    "recipe", "model_dir", "evaluation_dir", "pretraining_dir", "training_dir", "audit_file",
    "compare_with", "compared_with", "project_dir", "_name_or_path", "splits_file", "audit_dir",
    "external_dir",
}  # fmt: skip
NAMES_OR_PLACES = {"model_name_or_path": "model", "dataset_name": "dataset"}
# where a run was to be published concerns its author alone
PRIVATE_OPTIONS = {"push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "hub_tag"}
FILE_SUFFIXES = (
    "png|jpe?g|tiff?|bmp|webp|gif|dcm|dicom|ima|nii(?:\\.gz)?|mha|mhd|nrrd|csv|tsv|jsonl|xlsx?|"
    "parquet|tar|npy|npz|h5|zip|pth|pt|ckpt"
)
# below a folder these too are a place on this machine; by themselves they are names of ours, such
# as model.safetensors
PLACED_SUFFIXES = (
    f"{FILE_SUFFIXES}|json|ya?ml|toml|xml|safetensors|onnx|bin|pkl|pickle|mat|txt|md|log|html?|pdf|"
    "docx?|db|sqlite|feather"
)
# more may follow: x.csv.gz; the full stop of a sentence ends it
END = r"(?:\.(?:gz|bz2|xz|zst))?(?!\w|\.\w)"
QUOTED_PATH = re.compile(r"(['\"])(?:/|~/|\.\.?[\\/]|[A-Za-z]:[\\/]|\\\\)[^'\"\n]*\1")
QUOTED_PLACE = re.compile(
    rf"(?<!\w)(['\"])[^'\"\n/\\]*[/\\][^'\"\n]*\.(?:{PLACED_SUFFIXES}){END}\1", re.IGNORECASE
)
# a relative path to a file, as a whole, for its folders may be named after patients or hospitals;
# not the end of an absolute one or of a URL
PLACED_FILES = re.compile(
    r"(?<![^\s'\"<>|,;:()=])(?:[^\s/\\'\"<>|,;:()=]+[/\\]+)+"
    rf"[^\s/\\'\"<>|,;:()=]+\.(?:{PLACED_SUFFIXES}){END}",
    re.IGNORECASE,
)
PATHS = re.compile(
    r"file://\S+"  # as in an error's text
    r"|(?<![\w.:/<])~?/[^\s/'\"<>|,;:()]+(?:/[^\s/'\"<>|,;:()]*)+"  # /a/b, ~/a/b
    r"|(?<![\w/])~/[^\s'\"<>|,;:()]+"
    r"|(?<![\w./\\])\.\.?[/\\][^\s'\"<>|,;:()]+"  # ../a
    r"|(?<!\w)[A-Za-z]:[\\/][^\s'\"<>|,;()]+"  # C:\a
    r"|(?<!\\)\\\\[^\s'\"<>|,;()]+"  # \\server\share
)
FILES = re.compile(  # from a word's start alone: else its time grows with the square of a length
    r"(?<![^\s/\\'\"<>|,;:()=])"
    rf"[^\s/\\'\"<>|,;:()=]+\.(?:{FILE_SUFFIXES}){END}",
    re.IGNORECASE,
)
# as `file_source` in cli/split_sources.py writes it: any path, quoted as for a shell
SPLIT_FILE = re.compile(r"\bthe file (?:[\w@%+=:,./-]|'[^']*'|\"[^\"]*\")+")


def user_names() -> list[str]:
    """The user's name and home folder, as they may stand in a text; the longest first."""
    names = [str(Path.home())]
    with suppress(OSError, KeyError, ImportError):  # a user id without a name, as in containers
        names.append(getpass.getuser())
    # a short or common name is part of other words
    return [name for name in names if len(name) > 3 and name not in ("/root", "root", "user")]


def is_on_hub(name: str, kind: str = "model") -> bool:
    """Whether `name` is a model or data set of the Hub: a valid name, no place on this machine,
    and for a model one that was downloaded from there. Without the network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        if Path(name).exists():
            return False
        # "runs/pretrained" may be either: what came from the Hub lies in its cache
        return kind != "model" or isinstance(try_to_load_from_cache(name, "config.json"), str)
    except (HFValidationError, OSError):
        return False


# fields by which a checkpoint is loaded: a user called sssd, or a class called T1.nii, stays there
READ_BY_CODE = (
    "model_type", "architectures", "auto_map", "id2label", "label2id", "image_processor_type",
)  # fmt: skip


def clean_text(text: str) -> str:
    """`text` without paths, names of files of data, and the user's name. A relative path without a
    known suffix stays: it may be a name on the Hub, or two words."""
    text = QUOTED_PLACE.sub("<file>", QUOTED_PATH.sub("<path>", text))
    text = PATHS.sub("<path>", PLACED_FILES.sub("<file>", text))
    text = FILES.sub("<file>", text)
    for name in user_names():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "<user>", text)
    return text


def clean_command(command: str) -> str:
    """A command line with each place on this machine replaced by its option's name."""
    try:
        words = shlex.split(command)
    except ValueError:  # an open quotation mark
        return clean_text(command)
    cleaned: list[str] = []
    option = None  # that the words belong to
    for word in words:
        name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if name and not equals:
            option, shown = name[2:], word
        elif name:
            option, shown = None, f"{name}={clean_value(value, name[2:])}"
        else:
            shown = clean_value(word, option)
            if re.search(r"(^|/)scripts/\w+\.py$", word):
                shown = "scripts/" + word.rsplit("/", 1)[1]
            elif not cleaned and shown == "<path>":
                shown = "python"
        cleaned.append(shown)
    # placeholders stay readable: they are to be replaced by hand
    return " ".join(w if re.fullmatch(r"[\w<>=./,:@%+-]+", w) else shlex.quote(w) for w in cleaned)


def clean_value(value: Any, key: str | None = None) -> Any:
    """A value of results, a config or a recipe, `key` being its field; dicts and lists whole."""
    if isinstance(value, dict):
        return {clean_text(str(k)): clean_value(v, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [clean_value(item, key) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if key in PLACES or (key in NAMES_OR_PLACES and not is_on_hub(value, NAMES_OR_PLACES[key])):
        return f"<{key.strip('_')}>"
    if key == "split_source":
        value = SPLIT_FILE.sub("the file <path>", value)
    return clean_command(value) if key == "command" else clean_text(value)


def clean_results(results: dict[str, Any]) -> dict[str, Any]:
    """all_results.json for others' eyes. Subgroups too small to say anything are left out: they may
    be single patients."""
    cleaned = clean_value(results)
    for column in (cleaned.get("subgroups") or {}).values():
        groups = column.get("subgroups") if isinstance(column, dict) else None
        if isinstance(groups, dict):
            column["subgroups"] = {
                name: values
                for name, values in groups.items()
                if not (isinstance(values, dict) and values.get("small"))
            }
    return cleaned


def clean_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without the options that are places on this machine, so that it runs elsewhere."""
    sections = {}
    for script, options in recipe.items():
        kept = {}
        for name, value in (options if isinstance(options, dict) else {}).items():
            shown = clean_value(value, name)
            place = isinstance(shown, str) and shown.startswith("<")
            if name not in PRIVATE_OPTIONS | PLACES and not place:
                kept[name] = shown
        sections[script] = kept
    return sections


def cleaned_file(path: Path) -> bytes | None:
    """The bytes to publish instead of a JSON or YAML file; None where it may go as it is.

    Raises:
        ValueError: it can't be read.
    """
    import yaml

    if path.suffix not in (".json", ".yaml"):
        return None
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: can't be read ({error}); write it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected an object with names, found {type(value).__name__}")
    if path.suffix == ".yaml":
        cleaned = clean_recipe(value)
        return None if cleaned == value else yaml.safe_dump(cleaned, sort_keys=False).encode()
    cleaned = clean_results(value) if path.name == "all_results.json" else clean_value(value)
    if path.name in ("config.json", "preprocessor_config.json"):
        cleaned |= {name: value[name] for name in READ_BY_CODE if name in value}
    return None if cleaned == value else (json.dumps(cleaned, indent=2) + "\n").encode()
