"""``python -m keras_qusec``: the command line."""

import sys

from keras_qusec_cli import main

if __name__ == "__main__":
    sys.exit(main())
