"""How many edit pairs one core composes per second: python benchmarks/scenes.py [--size 64] [--objects rich] [--pairs 2000]

The caches are warmed with as many other pairs first. Single process and its CPU time, so the figure is per core.
"""

import argparse
import time

from editmgt_jax.data.scenes import source as scenes


def pairs_per_second(config, pairs):
    source = scenes.SceneSource(config)
    for index in range(pairs):
        source[index]
    start = time.process_time()
    for index in range(pairs, 2 * pairs):
        source[index]
    return pairs / (time.process_time() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--objects", choices=scenes.OBJECTS, default="core")
    parser.add_argument("--pairs", type=int, default=2000)
    options = parser.parse_args()
    config = scenes.SceneConfig(size=options.size, objects=options.objects)
    print(
        f"{pairs_per_second(config, options.pairs):.0f} pairs/s per core at {options.size} px, {options.objects} objects"
    )


if __name__ == "__main__":
    main()
