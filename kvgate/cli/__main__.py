"""`python -m kvgate.cli` is the `kvgate` command."""

import sys

from kvgate.cli.main import main

sys.exit(main())
