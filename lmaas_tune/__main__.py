"""``python -m lmaas_tune`` is ``lmaas-tune``."""

import sys

from lmaas_tune.cli import main

sys.exit(main())
