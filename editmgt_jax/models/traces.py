"""How often each jitted function was traced, for tests: a traced setting that changes must not add to it."""

from collections import Counter

traces = Counter()
