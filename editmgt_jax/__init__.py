"""EditMGT in JAX: instruction-based image editing by a masked generative transformer.

The public names are imported on first use, so that `import editmgt_jax` costs nothing.
"""

import importlib

_HOMES = {
    "EditPipeline": "pipeline",
    "Result": "sampling.results",
    "ExportedDecode": "sampling.exported",
    "EncodedText": "models.text",
    "LoadedModel": "weights.loading",
    "load_model": "weights.loading",
    "TokenEdit": "sampling.edit",
    "Settings": "sampling.settings",
    "SettingsError": "sampling.settings",
    "EditMGTError": "errors",
    "ImageError": "images",
    "PromptError": "models.prompts",
    "WeightsError": "weights.files",
}

__all__ = list(_HOMES)


def __getattr__(name):
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def _version() -> str:
    """The version that is installed; "0" where the package is used without an installation."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("editmgt_jax")
    except PackageNotFoundError:
        return "0"


def __dir__():
    return sorted([*globals(), *__all__])
