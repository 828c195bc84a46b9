"""The README's option table and line counts are those of the code."""

import re
from pathlib import Path

from sssd_hf.cli.readme import README, options_table, updated

ROOT = Path(__file__).parents[1]


def test_readme_is_up_to_date():
    text = README.read_text()
    assert text == updated(text, ROOT), "run: python -m sssd_hf.cli.readme"


def test_every_option_of_every_help_is_in_the_table():
    from sssd_hf.cli.arguments import SCRIPTS
    from sssd_hf.cli.parsing import build_parser

    table = options_table()
    for script in SCRIPTS:
        for action in build_parser(script, "")._actions:
            if action.dest not in ("help", "recipe"):
                assert f"| `--{action.dest}` |" in table


def test_line_counts_are_counted():
    text = README.read_text()
    assert "src/sssd_hf/modeling_sssd.py" in text
    wrong = re.sub(r"\), (\d+) lines", r"), 1\1 lines", text)
    assert wrong != text
    assert updated(wrong, ROOT) == text


def test_files_the_readme_links_to_exist():
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", README.read_text()):
        assert (ROOT / link).exists(), link
