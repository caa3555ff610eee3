"""`python -m editmgt_jax`."""

import sys

from editmgt_jax.cli import main

sys.exit(main())
