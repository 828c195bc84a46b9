"""Runs a recipe's study and writes its tables; see src/sssd_hf/cli/reproduce.py."""

from sssd_hf.cli.common import run_script
from sssd_hf.cli.reproduce import main

if __name__ == "__main__":
    run_script(main)
