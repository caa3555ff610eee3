"""Grain batches of edit pairs. A batch is a function of (seed, step); the iterator can be saved and restored."""

import grain
import numpy as np


def batches(source, batch_size: int, *, encode_text=None, shuffle_seed: int | None = None, threads=1, prefetch=4):
    """An endless, checkpointable iterator of batches.

    Args:
      source: random access to examples, dicts of arrays and of strings.
      encode_text: list of strings -> int32 [1 T]; turns 'instruction' into 'text_ids'. None leaves text out.
      shuffle_seed: draws a new order every epoch; None keeps the source's.
    Yields: dict of arrays, batch first.
    """

    def to_arrays(example):
        arrays = {name: value for name, value in example.items() if isinstance(value, np.ndarray)}
        if encode_text is not None:
            arrays["text_ids"] = encode_text([example["instruction"]])[0]
        return arrays

    dataset = grain.MapDataset.source(source)
    if shuffle_seed is not None:
        dataset = dataset.seed(shuffle_seed).shuffle()
    # Batching before to_iter_dataset keeps the stream the same for any number of threads or workers.
    dataset = dataset.repeat().map(to_arrays).batch(batch_size, drop_remainder=True)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)))
