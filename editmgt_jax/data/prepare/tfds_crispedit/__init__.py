"""A TFDS builder of CrispEdit-2M, from a local copy of its parquet files. Importing it registers `crisp_edit`."""

from editmgt_jax.data.prepare.tfds_crispedit.crisp_edit import CrispEdit

__all__ = ["CrispEdit"]
