"""The command line, one file for each command. Errors become exit codes here and nowhere else."""

import logging
import os
import sys

from medvllm import settings
from medvllm.cli import streams
from medvllm.cli.faults import report, say_traceback
from medvllm.errors import MedVLLMError


def main() -> None:
    """Run the command line: exit code 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    streams.prepare()
    # Do not print a traceback for a log line that cannot be written.
    logging.raiseExceptions = False
    # While a shell completes a line, anything on standard error would appear in the middle of it.
    level = logging.CRITICAL if "_MEDVLLM_COMPLETE" in os.environ else logging.WARNING
    logging.basicConfig(format="%(message)s", level=level, stream=sys.stderr)
    settings.warn_of_unknown()
    try:
        from medvllm.cli.app import make_app

        code = make_app(sys.argv[1:])(standalone_mode=False)
        streams.flush()
    except KeyboardInterrupt:
        code = 130
    except SystemExit:
        raise
    except BaseException as error:  # including a panic of a native library, which is not an Exception
        if _shows_tracebacks():
            say_traceback(error, sys.argv[1:])
        code = report(error, sys.argv[1:])
    streams.close()
    sys.exit(code if isinstance(code, int) else 0)


def _shows_tracebacks() -> bool:
    try:
        return settings.DEBUG()
    except MedVLLMError:
        return False
