"""What a run's config says about its data: folders, text tokenizer, batches."""

import hashlib
from pathlib import Path

from editmgt_jax.config import CLIPTextConfig
from editmgt_jax.data.loader import Batches, Mixture, batches, token_batches
from editmgt_jax.data.records import TOKENS, read_manifest
from editmgt_jax.data.scenes.source import SceneConfig, SceneSource, instruction_corpus
from editmgt_jax.errors import UserError
from editmgt_jax.files import mounted
from editmgt_jax.models.prompts import train_tokenizer
from editmgt_jax.weights.components import COMPONENTS
from editmgt_jax.weights.loading import tokenizer_folders


def resolve(config, workdir, make: bool = True) -> None:
    """Completes a config in place: its folders become absolute and are checked, and its text tokenizer is learnt if need be.

    Args:
      make: whether this process learns the tokenizer; another one then does.
    Errors: FileNotFoundError, ValueError.
    """
    if config.task == "mgt" and not config.model.encoders and not config.model.tokenizer:
        learnt = [Path(folder) / "tokenizer" for folder, _ in parse_mixture(config.data.tokens)[:1]]
        if learnt and learnt[0].is_dir():
            config.model.tokenizer = str(learnt[0])  # records come with the tokenizer that was learnt for them
    for keys, name in (
        (config, "start_from"),
        (config.model, "vq"),
        (config.model, "tokenizer"),
        (config.model, "encoders"),
    ):
        if keys.get(name):
            keys[name] = _folder(keys[name], name)
    for name in ("tokens", "heldout"):
        mixture = [(_folder(folder, f"data.{name}"), weight) for folder, weight in parse_mixture(config.data[name])]
        config.data[name] = ",".join(f"{folder}:{weight:g}" for folder, weight in mixture)
    if config.task != "mgt":
        return
    if config.data.tokens or config.data.heldout:
        _check_tokens(config)
    if not config.model.encoders:
        if not config.model.tokenizer:
            config.model.tokenizer = str(Path(workdir).absolute() / "tokenizer")
            if make and not Path(config.model.tokenizer).exists():
                learn_tokenizer(config, config.model.tokenizer)


def _folder(path, name) -> str:
    path = mounted(path, f"the config's {name}")
    if not path.is_dir():
        raise FileNotFoundError(f"the config's {name} must be a folder; there is none at {path}")
    return str(path)


def parse_mixture(text: str) -> list[tuple[str, float]]:
    """'runs/a:3,runs/b' -> [('runs/a', 3.0), ('runs/b', 1.0)]. Errors: ValueError."""
    mixture = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        folder, colon, weight = part.rpartition(":")
        try:
            mixture.append((folder, float(weight)) if colon else (part, 1.0))
        except ValueError as error:
            raise UserError(
                f"folders of records are FOLDER or FOLDER:WEIGHT, with commas between them; got {text!r}"
            ) from error
    return mixture


def scene_source(config, split: str, length: int = 1_000_000_000) -> SceneSource:
    """The first `length` pairs of a split. The held-out ones are of another seed than the evaluation protocols report on."""
    data = config.data
    seed = data.seed + (split == "heldout")
    return SceneSource(SceneConfig(size=data.size, split=split, seed=seed, objects=data.objects, length=length))


def learn_tokenizer(config, directory) -> None:
    """Learns a text tokenizer from the scenes' instructions."""
    # A small tokenizer should know words that it may be told later.
    objects = "all" if config.data.objects == "core" else config.data.objects
    scenes = SceneConfig(size=config.data.size, seed=config.data.seed, objects=objects)
    train_tokenizer(instruction_corpus(20_000, scenes), directory, length=config.model.text.max_position_embeddings)


def encoded_in_steps(config) -> set[str]:
    """What steps must encode: 'images' and 'text' that no records hold encoded, of training and of held-out data; 'empty text'
    stands for the states of text that was left out, where records hold states."""
    needed = set()
    for name in ("tokens", "heldout"):
        folders = [folder for folder, _ in parse_mixture(config.data[name])]
        stored = [bool(read_manifest(folder, TOKENS).get("text_states")) for folder in folders]
        if len(set(stored)) > 1:
            raise UserError(f"all folders of data.{name} must hold text states, or none; got {config.data[name]}")
        needed |= {"empty text"} if any(stored) else {"text"}
        needed |= set() if folders else {"images"}
    return needed


def make_batches(config, split: str, encode_text=None, rows=None) -> Batches:
    """Batches of a split: those of the token records that the config names, else of scenes.

    Args:
      split: 'train' or 'heldout'; encode_text: strings -> {name: ids [B T]}, for scenes; rows: of each global batch.
    """
    data = config.data
    mixture = parse_mixture(data.tokens if split == "train" else data.heldout)
    if not mixture:
        source = scene_source(config, split)
        workers = data.workers if split == "train" else 0  # evaluation draws few
        more = {"rows": rows, "workers": workers, "threads": data.threads, "named": repr(source.config)}
        return batches(source, config.batch_size, encode_text=encode_text, **more)
    weights = tuple(sorted(_weights(data.categories))) if split == "train" else ()
    return token_batches(
        Mixture(tuple(mixture), weights),
        config.batch_size,
        seed=data.seed,
        rows=rows,
        workers=data.workers,
        threads=data.threads,
        bad_records=data.bad_records,
    )


def _weights(text: str) -> list[tuple[str, float]]:
    """'style:0.5,add:2' -> [('style', 0.5), ('add', 2.0)]"""
    weights = parse_mixture(text)
    if any(":" not in part for part in text.split(",") if part.strip()):
        raise UserError(f"data.categories must read CATEGORY:WEIGHT, with commas between them; got {text!r}")
    return weights


def _check_tokens(config) -> None:
    """Errors: ValueError when token records were made with other tokenizers than the config names."""
    folders = [folder for name in ("tokens", "heldout") for folder, _ in parse_mixture(config.data[name])]
    if config.model.encoders:
        tokenizers = tokenizer_folders(config.model.encoders)
    elif config.model.tokenizer:
        tokenizers = learnt_tokenizer(config)
    else:
        raise UserError(f"{folders[0]} has no folder `tokenizer`: name its text tokenizer in model.tokenizer")
    facts = identity(config.model.vq or Path(config.model.encoders) / "vqvae", tokenizers)
    for folder in folders:
        manifest = read_manifest(folder, TOKENS)
        for name, value in facts.items():
            if manifest.get(name) != value:
                raise UserError(
                    f"the records in {folder} were made with another {name} than the config names: "
                    "encode the data again, or name the folders it was encoded with"
                )


def learnt_tokenizer(config) -> dict:
    """The text tokenizer of a text encoder that is trained along, as `tokenizer_folders` gives them."""
    return {COMPONENTS[CLIPTextConfig].text.digest: config.model.tokenizer}


def identity(vq, tokenizers: dict) -> dict:
    """What ids of pictures and of text depend on, as hashes of the files.

    Args:
      vq: folder of the image tokenizer; tokenizers: {field: folder} of the text tokenizers, see `tokenizer_folders`.
    """
    hashes = {field: _hash(folder, "*") for field, folder in tokenizers.items()}
    return {"image_tokenizer": _hash(vq, "*.safetensors")} | hashes


def _hash(folder, pattern) -> str:
    found = hashlib.sha256()
    for path in sorted(Path(folder).glob(pattern)):
        if path.is_file() and not (pattern == "*" and path.suffix not in (".json", ".txt", ".model")):
            found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()
