"""The command line: one file a noun. Errors become exit codes here and nowhere else."""

import logging
import sys

from medvllm import settings
from medvllm.cli import streams
from medvllm.cli.faults import report


def main() -> None:
    """Run the command line: exit code 0, 1 for an error of ours, 2 for wrong usage, 130 for Ctrl-C."""
    streams.prepare()
    # A log line that cannot be written is not worth a traceback.
    logging.raiseExceptions = False
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    debug = False
    try:
        debug = settings.DEBUG()
        from medvllm.cli.app import app

        code = app(standalone_mode=False)
        streams.flush()
    except KeyboardInterrupt:
        code = 130
    except SystemExit:
        raise
    except BaseException as error:  # also the panic of a native library, which is no Exception
        if debug:
            raise
        code = report(error, sys.argv[1:])
    streams.close()
    sys.exit(code if isinstance(code, int) else 0)
