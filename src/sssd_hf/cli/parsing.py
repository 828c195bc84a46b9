"""From defaults, a recipe and the command line to a script's options, in this order."""

import argparse
import dataclasses
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from .arguments import SCRIPTS


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """One spelling an option, and its default where the text does not explain it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        explained = action.default is None or "default" in action.help.lower()
        return action.help if explained else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        name = next(o for o in action.option_strings if o.startswith("--"))
        return f"{name} {self._format_args(action, action.dest.upper())}".strip()


def build_parser(script: str, description: str):
    """The `HfArgumentParser` of a script, options in groups."""
    from transformers import HfArgumentParser

    parser = HfArgumentParser(
        SCRIPTS[script],
        description=description,
        usage=f"{script}.py [--recipe FILE.yaml] [--option value ...]",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recipe",
        metavar="FILE.yaml",
        help="Take options from this file: its section 'common' and the one named as the script. "
        "The command line wins; '' takes an option back that is none by default.",
    )
    return parser


def read_recipe(path: str, script: str, known: set[str]) -> dict[str, Any]:
    """The options that a recipe gives to a script.

    Raises:
        ValueError: no such file, or an option or section that does not exist.
    """
    import yaml

    if not Path(path).is_file():
        raise ValueError(f"--recipe {path}: there is no such file.")
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--recipe {path}: not a YAML file ({error}).") from error
    sections = recipe if isinstance(recipe, dict) else {}
    unknown = [name for name in sections if name not in ("common", *SCRIPTS)]
    if not sections or unknown or not all(isinstance(s, dict) for s in sections.values()):
        raise ValueError(
            f"--recipe {path}: found the sections {', '.join(map(str, sections)) or 'none'}; "
            f"expected common, {', '.join(SCRIPTS)}, each with option: value lines."
        )
    if not {"common", script} & set(sections):
        raise ValueError(f"--recipe {path}: has no section {script} and no section common.")
    every = set().union(*map(option_names, SCRIPTS))
    common = recipe.get("common") or {}
    options = {**common, **(recipe.get(script) or {})}
    # a common option may concern the other scripts alone
    wrong = {k for k in options if k not in known and not (k in common and k in every)}
    if wrong:
        raise ValueError(
            f"--recipe {path}: {script} has no option {', '.join(sorted(wrong))}; see --help."
        )
    return {key: value for key, value in options.items() if key in known}


def parse(script: str, description: str, argv: list[str] | None = None) -> tuple[Any, ...]:
    """The dataclasses of a script, filled from defaults, recipe and command line, in this order."""
    argv = join_negative_values(sys.argv[1:] if argv is None else argv)
    parser = build_parser(script, description)
    known = {action.dest for action in parser._actions} - {"help", "recipe"}
    optional = {action.dest for action in parser._actions if action.default is None}
    words = without_unset([a for a in argv if a not in ("-h", "--help")], optional)
    recipe = parser.parse_known_args(words)[0].recipe
    if recipe:
        try:
            options = read_recipe(recipe, script, known)
        except ValueError as error:
            parser.error(str(error))
        # as words of a command line, so that argparse checks types and choices
        choices = {action.dest: action.choices or () for action in parser._actions}
        words = []
        for key, value in options.items():
            if value is False and "no" in choices[key]:
                value = "no"  # YAML reads an unquoted no as false
            if value is not None:
                values = value if isinstance(value, list) else [value]
                words += [f"--{key}", *(str(v) for v in values)]
        argv = join_negative_values(words) + argv
    argv = without_unset(argv, optional)
    unknown = parser.parse_known_args(argv)[1]
    if unknown:
        parser.error(f"{script} has no option {' '.join(unknown)}; see --help.")
    try:
        return parser.parse_args_into_dataclasses(argv, look_for_args_file=False)[:-1]
    except ValueError as error:  # a value out of its range
        parser.error(str(error))


def command_line(script: str, argv: list[str] | None) -> str:
    """The command that does the same again."""
    return shlex.join(["python", f"scripts/{script}.py", *(sys.argv[1:] if argv is None else argv)])


def join_negative_values(argv: list[str]) -> list[str]:
    """`--window -600/1500` as one word, for argparse takes such a value for an option."""
    joined: list[str] = []
    for word in argv:
        if re.match(r"-\d", word) and joined and re.fullmatch(r"--\w+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def option_words(argv: list[str]) -> list[tuple[str, list[str]]]:
    """(name, the words it is given by) of each option of a command line, in its order.

    Raises:
        ValueError: a word belongs to no option.
    """
    options: list[tuple[str, list[str]]] = []
    for word in join_negative_values(argv):
        if word.startswith("--"):
            options.append((word[2:].partition("=")[0], [word]))
        elif options:
            options[-1][1].append(word)
        else:
            raise ValueError(f"{word}: expected an option such as --data_dir first; see --help.")
    return options


def without_unset(argv: list[str], optional: set[str]) -> list[str]:
    """The words less those of options that an empty value sets back to none, such as a recipe's.

    Args:
        optional: names of the options that are none by default.
    """
    try:
        given = option_words(argv)
    except ValueError:  # argparse names the word
        return argv
    options = [(name.replace("-", "_"), words) for name, words in given]  # it takes both spellings
    unset = {
        name: i
        for i, (name, words) in enumerate(options)
        if name in optional and (words[1:] == [""] or (len(words) == 1 and words[0][-1] == "="))
    }
    kept = [words for i, (name, words) in enumerate(options) if i > unset.get(name, -1)]
    return [word for words in kept for word in words]


def option_names(script: str) -> set[str]:
    return {f.name for group in SCRIPTS[script] for f in dataclasses.fields(group)}


def as_dict(*arguments: Any) -> dict[str, Any]:
    """All options and their values, as a recipe would have them."""
    return {k: v for a in arguments for k, v in dataclasses.asdict(a).items()}
