"""The public names and options are frozen: a change of them is a decision, made in
tests/public_api.json in the same commit (`python tests/test_public_api.py` rewrites it)."""

import dataclasses
import json
from pathlib import Path

FROZEN = Path(__file__).with_name("public_api.json")


def public_api() -> dict:
    import sssd_hf
    from sssd_hf.cli.arguments import SCRIPTS

    return {
        "names": sorted(sssd_hf.__all__),
        "config_fields": sorted(set(sssd_hf.SSSDConfig().to_dict()) - {"transformers_version"}),
        "output_fields": [f.name for f in dataclasses.fields(sssd_hf.SSSDForPreTrainingOutput)],
        "options": {
            script: sorted({f.name for group in groups for f in dataclasses.fields(group)})
            for script, groups in SCRIPTS.items()
        },
    }


def test_public_api_is_frozen():
    assert public_api() == json.loads(FROZEN.read_text())


if __name__ == "__main__":
    FROZEN.write_text(json.dumps(public_api(), indent=1) + "\n")
