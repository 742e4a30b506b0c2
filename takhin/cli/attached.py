"""takhin-server that ends with whoever holds the other end of its standard input."""

import os
import signal
import sys
import threading

from takhin.cli.server import main


def _end_with_input() -> None:
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass  # it is closed
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_input, name="attached", daemon=True).start()
    sys.exit(main())
