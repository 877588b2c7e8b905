"""The command line: one file a noun. Errors become exit codes here and nowhere else."""

import logging
import sys

from medvllm import settings
from medvllm.errors import MedVLLMError


def main() -> None:
    """Run the command line: exit code 0, 1 for an error of ours, 2 for usage, 130 for Ctrl-C."""
    from medvllm.cli.app import app

    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    debug = False
    try:
        debug = settings.DEBUG()
        app()
    except (MedVLLMError, OSError) as error:  # OSError: an output that cannot be written, say
        if debug:
            raise
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(1)
