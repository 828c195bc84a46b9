"""See `python scripts/push_to_hub.py --help`."""

from sssd_hf.cli.common import run_script
from sssd_hf.cli.push_to_hub import main

if __name__ == "__main__":
    run_script(main)
