from pathlib import Path

from setuptools import find_packages, setup

# Making training sets of raw pairs: runners, parquet files, other people's datasets.
PREPARE = ["apache-beam>=2.70", "pyarrow>=18.0", "tensorflow-datasets>=4.9.9", "importlib_resources"]
# Ablations: tables, figures, studies.
ABLATE = ["pyarrow>=18.0", "vl-convert-python>=1.7", "optuna>=4.0"]
# An HTTP server.
SERVE = ["starlette>=1.0", "uvicorn>=0.30", "python-multipart>=0.0.20", "prometheus-client>=0.20"]
# A page for browsers on it.
PAGE = [*SERVE, "gradio>=6.0,<7"]

setup(
    name="editmgt_jax",
    version="0.1.0",
    description="Instruction-based image editing with masked generative transformers, in JAX and Flax for TPUs",
    long_description=Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["editmgt_jax", "editmgt_jax.*"]),
    include_package_data=True,
    package_data={"editmgt_jax": ["assets/**/*", "serving/page.css"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12.8,<0.13",
        "grain>=0.2.16",
        "array_record>=0.8",
        "ml-collections>=1.0",
        "transformers>=5.0",
        "tokenizers>=0.22",
        "safetensors>=0.5",
        "huggingface_hub>=0.30",
        "ml_dtypes>=0.5",
        "msgpack>=1.1",
        "numpy>=2.0",
        "scipy>=1.14",
        "jaxtyping>=0.3",
        "pillow>=11.0",
        "tqdm>=4.66",
        "tensorboardX>=2.6",
        "flatbuffers>=24.3",  # programs that jax exports to files
    ],
    extras_require={
        "test": [
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "beartype>=0.20",
            "ruff>=0.8",
            "scikit-image>=0.25",
            "scikit-learn>=1.5",
            *PREPARE,
            *ABLATE,
            *SERVE,
            "httpx2>=2.0",  # of starlette's test client
            "setuptools>=75",  # whether setup.py names every package; Python 3.12 and later have none in an environment
            "openai>=2.0",
            "nbclient>=0.10",
            "ipykernel>=6.29",  # of the notebook
        ],
        "prepare": PREPARE,
        # Benchmarks: rows of an evaluation, SSIM; CLIP and DINO are PyTorch models of transformers.
        "eval": ["pyarrow>=18.0", "scikit-image>=0.25", "torch>=2.6"],
        "ablate": ABLATE,
        "serve": SERVE,
        "wandb": ["wandb>=0.20"],
        "page": PAGE,
        # The PyTorch implementations that the parity tests compare with.
        "parity": ["torch>=2.6", "diffusers>=0.35"],
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
    },
    entry_points={"console_scripts": ["editmgt = editmgt_jax.cli:main"]},
)
