"""`python -m raylm` is `raylm`."""

import sys

from raylm.cli import main

sys.exit(main())
