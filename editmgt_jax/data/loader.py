"""Grain batches of edit pairs. A batch is a function of (seed, step); the iterator can be saved and restored."""

import grain
import numpy as np


def batches(source, batch_size: int, encode_text=None, threads: int = 1, prefetch: int = 4):
    """An endless, checkpointable iterator of batches, in the source's own order.

    Args:
      source: random access to examples with 'source', 'target' uint8 [S S 3], 'mask' bool [S S] and 'instruction'.
      encode_text: list of strings -> int32 [1 T], adds 'text_ids'; None leaves text out.
    Yields: dict of arrays, batch first.
    """

    def to_arrays(example):
        arrays = {name: np.asarray(example[name]) for name in ("source", "target", "mask")}
        if encode_text is not None:
            arrays["text_ids"] = encode_text([example["instruction"]])[0]
        return arrays

    # Batching before to_iter_dataset keeps the stream the same for any number of threads or workers.
    dataset = grain.MapDataset.source(source).map(to_arrays).repeat().batch(batch_size, drop_remainder=True)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(dataset.to_iter_dataset(options))
