"""The tables and line counts of README and docs are those of the code and of the records."""

import re

import pytest

from sssd_hf.cli.readme import ROOT, main_results, options_table, pages, updated

README = ROOT / "README.md"


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_pages_are_up_to_date(page):
    text = page.read_text()
    assert text == updated(text, ROOT), "run: python -m sssd_hf.cli.readme"


def test_there_are_options_and_main_results_somewhere():
    everything = "".join(page.read_text() for page in pages())
    assert options_table() in everything
    assert main_results(ROOT) in README.read_text()


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


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_what_a_page_links_to_exists(page):
    for link in re.findall(r"\]\(((?!http|#)[^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_the_readme_is_read_in_one_go():
    assert len(README.read_text().splitlines()) <= 330


def test_quoted_tests_are_of_the_present_tables():
    """A row more in a table changes the adjusted p-values of all others."""
    tables = "".join(path.read_text() for path in (ROOT / "recipes/results").glob("*.md"))
    quoted = re.findall(r"\bp (0\.\d+)", README.read_text())
    assert quoted
    for p in quoted:
        assert re.search(rf", p {re.escape(p)} \|", tables), f"no table has p {p}"
