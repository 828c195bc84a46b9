"""See `python scripts/embed.py --help`."""

from sssd_hf.cli.common import run_script
from sssd_hf.cli.embed import main

if __name__ == "__main__":
    run_script(main)
