"""What the Hub requires of a model card's metadata, checked without the Hub.

The Hub checks at each push of a README.md (/api/validate-yaml), and its rules may change; these are
the ones it documents: the licences of repositories-licenses.md and the model-index of modelcard.md
(both huggingface/hub-docs), the tasks of packages/tasks/src/pipelines.ts (huggingface.js), and the
names of repositories as huggingface_hub checks them. Licences that it added later are unknown here.
"""

import math
import re
from typing import Any

TASKS = set(
    """biology text-classification token-classification table-question-answering question-answering
    zero-shot-classification translation summarization feature-extraction text-generation
    text2text-generation fill-mask sentence-similarity text-to-speech text-to-audio
    automatic-speech-recognition audio-to-audio audio-classification audio-text-to-text
    voice-activity-detection depth-estimation image-classification object-detection
    image-segmentation text-to-image image-to-text image-to-image image-to-video
    unconditional-image-generation video-classification reinforcement-learning robotics
    tabular-classification tabular-regression tabular-to-text table-to-text multiple-choice
    text-ranking text-retrieval time-series-forecasting text-to-video image-text-to-text
    visual-question-answering document-question-answering zero-shot-image-classification graph-ml
    mask-generation zero-shot-object-detection text-to-3d image-to-3d image-feature-extraction
    video-text-to-text keypoint-detection visual-document-retrieval any-to-any other""".split()
)
LICENSES = set(
    """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
    c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
    cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl
    ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1
    lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa
    unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2 gemma unknown other""".split()
)


def check_card(text: str) -> None:
    """Raises ValueError with all that is wrong in the metadata of a card, the README.md's text."""
    import yaml
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    block = REGEX_YAML_BLOCK.search(text)
    try:
        metadata = yaml.safe_load(block[2]) if block else None
    except yaml.YAMLError as error:
        raise ValueError(f"The card's metadata are no YAML: {error}") from error
    if not isinstance(metadata, dict):
        raise ValueError("The card has no metadata; expected a YAML block between lines of ---.")
    problems = metadata_problems(metadata)
    if problems:
        raise ValueError("The card's metadata would be refused: " + "; ".join(problems))


def metadata_problems(metadata: dict[str, Any]) -> list[str]:
    """What the Hub would refuse of a card's metadata, in sentences; [] where nothing."""
    empty = [key for key, value in metadata.items() if value in (None, [], "")]
    problems = [f"{key} is empty: leave it out" for key in empty]
    given = {key: value for key, value in metadata.items() if key not in empty}
    task = given.get("pipeline_tag", "other")
    if not isinstance(task, str) or task not in TASKS:
        problems.append(f"pipeline_tag {task!r} is no task of the Hub")
    for name in _texts(given, "license", problems):
        if name not in LICENSES:
            problems.append(
                f"license {name!r} is no identifier of the Hub, such as apache-2.0; others are "
                "'other' with a license_name"
            )
        if name == "other" and "license_name" not in given:
            problems.append("license other needs a license_name")
    name = given.get("license_name")
    if name is not None and not (isinstance(name, str) and re.fullmatch(r"[a-z0-9-.]+", name)):
        problems.append(f"license_name {name!r} is not of small letters, digits, - and . alone")
    for key in ("datasets", "base_model"):
        problems += [p for value in _texts(given, key, problems) for p in _id_problems(key, value)]
    for key in ("tags", "metrics", "library_name"):
        _texts(given, key, problems)
    if "model-index" in given:
        problems += _index_problems(given["model-index"])
    return problems


def _texts(metadata: dict[str, Any], key: str, problems: list[str]) -> list[str]:
    """The texts under a key that takes one or several; anything else is a problem."""
    value = metadata.get(key, [])
    values = value if isinstance(value, list) else [value]
    wrong = [v for v in values if not isinstance(v, str) or not v.strip()]
    if wrong:
        problems.append(f"{key} holds {wrong[0]!r}, expected text")
    return [v for v in values if v not in wrong]


def _id_problems(key: str, value: str) -> list[str]:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(value)
        return []
    except HFValidationError:
        return [f"{key} {value!r} is no name on the Hub, such as OWNER/NAME"]


def _index_problems(index: Any) -> list[str]:
    """Of modelcard.md: a list of models with results, each with task, dataset and metrics."""
    if not isinstance(index, list) or not index:
        return ["model-index is no list of models"]
    problems = []
    for i, model in enumerate(index):
        place = f"model-index[{i}]"
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            problems.append(f"{place} has no name")
            continue
        results = model.get("results")
        if not isinstance(results, list) or not results:
            problems.append(f"{place}.results is no list of results")
            continue
        for k, result in enumerate(results):
            problems += _result_problems(f"{place}.results[{k}]", result)
    return problems


def _result_problems(place: str, result: Any) -> list[str]:
    if not isinstance(result, dict):
        return [f"{place} is no mapping"]
    problems = []
    for part, required in (("task", ("type",)), ("dataset", ("type", "name"))):
        value = result.get(part)
        if not isinstance(value, dict):
            problems.append(f"{place}.{part} is missing")
            continue
        for key in required:
            if not isinstance(value.get(key), str) or not value[key].strip():
                problems.append(f"{place}.{part}.{key} is no text")
        if not isinstance(value.get("args", {}), dict):
            problems.append(f"{place}.{part}.args is no mapping")
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        return [*problems, f"{place}.metrics is no list of metrics"]
    for m, metric in enumerate(metrics):
        here = f"{place}.metrics[{m}]"
        if not isinstance(metric, dict) or not isinstance(metric.get("type"), str):
            problems.append(f"{here}.type is no text")
            continue
        value = metric.get("value")
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            problems.append(f"{here}.value is {value}, expected a number or text")
    return problems
