"""`python -m editmgt_jax.cli`."""

import sys

from editmgt_jax.cli import main

sys.exit(main())
