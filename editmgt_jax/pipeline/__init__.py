"""Load a model directory once, then edit pictures, or make them from text."""

from editmgt_jax.pipeline.pictures import EditPipeline

__all__ = ["EditPipeline"]
