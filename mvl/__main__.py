"""`python -m mvl` is the `mvl` command."""

import sys

from mvl.cli import main

sys.exit(main())
