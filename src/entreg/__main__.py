"""`python -m entreg` is the command line; so is `torchrun -m entreg`."""

import sys

from entreg.cli import main

sys.exit(main())
