"""What the dataclasses of options are made with."""

from dataclasses import field
from typing import Any


def option(default: Any = None, help: str = "", **kwargs: Any) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help, **kwargs})
    return field(default=default, metadata={"help": help, **kwargs})


def check_ranges(arguments: Any, **ranges: tuple[float, float | None]) -> None:
    """Raises ValueError for an option outside of (lowest, highest); None is no limit, or unset."""
    for name, (lowest, highest) in ranges.items():
        value = getattr(arguments, name)
        if value is not None and not (
            lowest <= value <= (float("inf") if highest is None else highest)
        ):
            allowed = f"at least {lowest}" if highest is None else f"{lowest} to {highest}"
            raise ValueError(f"--{name} is {value}; expected {allowed}.")
