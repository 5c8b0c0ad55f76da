"""``python -m keras_qusec_cli``."""

import sys

from keras_qusec_cli import main

sys.exit(main())
