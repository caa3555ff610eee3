"""What a run's config says about its data: folders, text tokenizer, batches."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from editmgt_jax.config import CLIPTextConfig, VQConfig
from editmgt_jax.data.loader import Batches, Mixture, batches, token_batches
from editmgt_jax.data.records import TOKENS, read_manifest
from editmgt_jax.data.scenes.source import CATEGORIES, SceneConfig, SceneSource, instruction_corpus
from editmgt_jax.errors import UserError
from editmgt_jax.files import mounted
from editmgt_jax.models.prompts import PromptTokenizer, train_tokenizer
from editmgt_jax.training import declare, runs
from editmgt_jax.training.config import MGTRun, TrainConfig
from editmgt_jax.training.declare import ConfigError
from editmgt_jax.weights.components import COMPONENTS
from editmgt_jax.weights.fingerprints import weights_identity
from editmgt_jax.weights.loading import tokenizer_folders


def resolve(config: TrainConfig, workdir: str | Path) -> TrainConfig:
    """The config with the folders that it names checked and absolute; but a run that goes on does without what it started from.

    Errors: FileNotFoundError, UserError.
    """
    found = {}
    left = {"start_from"} if runs.is_begun(workdir) and not config.lora.rank else set()
    for name, value, declared in declare.leaves(config):
        if name in left:
            continue
        if declared.folder and isinstance(value, str) and value:
            found[name] = _folder(value, name)
        elif declared.folder and value:
            found[name] = [{"path": _folder(one.path, name), "weight": one.weight} for one in value]
    return declare.replaced(config, found)


def resolve_text(config: MGTRun, workdir: str | Path, make: bool = True) -> MGTRun:
    """The config with its text tokenizer, that of the token records or one that is learnt of the scenes; the records must be
    of the tokenizers that it names.

    Args:
      make: whether this process learns the tokenizer; another one then does.
    Errors: UserError.
    """
    model, data = config.model, config.data
    if not model.encoders and not model.tokenizer:
        learnt = [Path(folder.path) / "tokenizer" for folder in data.tokens[:1]]
        if learnt and learnt[0].is_dir():
            config = declare.replaced(config, {"model.tokenizer": str(learnt[0])})
    if data.tokens or data.heldout:
        _check_tokens(config)
    if model.encoders or config.model.tokenizer:
        return config
    config = declare.replaced(config, {"model.tokenizer": str(Path(workdir).absolute() / "tokenizer")})
    if make and not Path(config.model.tokenizer).exists():
        learn_tokenizer(config, config.model.tokenizer)
    return config


def _folder(path, name) -> str:
    path = mounted(path, f"the config's {name}")
    if not path.is_dir():
        raise FileNotFoundError(f"the config's {name} must be a folder; there is none at {path}")
    return str(path)


def scene_source(config: TrainConfig, split: str, length: int = 1_000_000_000) -> SceneSource:
    """The first `length` pairs of a split. The held-out ones are of another seed than the evaluation protocols report on."""
    data = config.data
    seed = data.seed + (split == "heldout")
    known = dict(data.categories)
    if unknown := sorted({*known} - {*CATEGORIES}):
        raise ConfigError(f"data.categories must be of {', '.join(CATEGORIES)} for scenes; got {', '.join(unknown)}")
    weights = tuple(known.get(name, 1.0) for name in CATEGORIES) if known and split == "train" else ()
    return SceneSource(
        SceneConfig(size=data.size, split=split, seed=seed, objects=data.objects, length=length, weights=weights)
    )


def _named(scenes: SceneConfig) -> str:
    """What tells scenes from others, as before there were weights."""
    return repr(scenes) + (f" {scenes.weights}" if scenes.weights else "")


def learn_tokenizer(config: MGTRun, directory: str | Path) -> None:
    """Learns a text tokenizer from the scenes' instructions. Errors: FileExistsError."""
    # A small tokenizer should know words that it may be told later.
    objects = "all" if config.data.objects == "core" else config.data.objects
    scenes = SceneConfig(size=config.data.size, seed=config.data.seed, objects=objects)
    train_tokenizer(instruction_corpus(20_000, scenes), directory, length=config.model.text.max_position_embeddings)


def encoded_in_steps(config: TrainConfig) -> set[str]:
    """What steps must encode: 'images' and 'text' that no records hold encoded, of training and of held-out data; 'empty text'
    stands for the states of text that was left out, where records hold states.

    Errors: UserError for a mixture of records with and without states.
    """
    needed = set()
    for name in ("tokens", "heldout"):
        folders = [folder.path for folder in getattr(config.data, name)]
        stored = [bool(read_manifest(folder, TOKENS).get("text_states")) for folder in folders]
        if len(set(stored)) > 1:
            raise UserError(f"all folders of data.{name} must hold text states, or none; got {folders}")
        needed |= {"empty text"} if any(stored) else {"text"}
        needed |= set() if folders else {"images"}
    return needed


def make_batches(
    config: TrainConfig,
    split: str,
    encode_text: Callable[[list[str]], dict] | None = None,
    examples: Sequence[int] | None = None,
) -> Batches:
    """Batches of a split: those of the token records that the config names, else of scenes.

    Args:
      split: 'train' or 'heldout'; encode_text: strings -> {name: ids [B T]}, for scenes; examples: of each global batch.
    """
    data = config.data
    folders = data.tokens if split == "train" else data.heldout
    if not folders:
        source = scene_source(config, split)
        workers = data.workers if split == "train" else 0  # evaluation draws few
        more = {"examples": examples, "workers": workers, "threads": data.threads, "named": _named(source.config)}
        return batches(source, config.batch_size, encode_text=encode_text, **more)
    return token_batches(
        Mixture(tuple((folder.path, folder.weight) for folder in folders), data.categories if split == "train" else ()),
        config.batch_size,
        seed=data.seed,
        examples=examples,
        workers=data.workers,
        threads=data.threads,
        bad_records=data.bad_records,
    )


def _check_tokens(config) -> None:
    """Errors: UserError when token records were made with other tokenizers than the config names."""
    folders = [folder.path for folder in (*config.data.tokens, *config.data.heldout)]
    if config.model.encoders:
        tokenizers = tokenizer_folders(config.model.encoders)
    elif config.model.tokenizer:
        tokenizers = learnt_tokenizer(config)
    else:
        raise UserError(f"{folders[0]} has no folder `tokenizer`: name its text tokenizer in model.tokenizer")
    vq = config.model.vq or Path(config.model.encoders) / "vqvae"
    facts = identity(vq, tokenizers)
    for folder in folders:
        manifest = read_manifest(folder, TOKENS)
        if all(manifest.get(name) == value for name, value in facts.items()):
            continue
        before = identity_of_files(vq, tokenizers)
        for name in facts:
            if manifest.get(name) not in (facts[name], before[name]):
                raise UserError(
                    f"the records in {folder} were made with another {name} than the config names: "
                    "encode the data again, or name the folders it was encoded with"
                )


def learnt_tokenizer(config: MGTRun) -> dict[str, str]:
    """The text tokenizer of a text encoder that is trained along, as `tokenizer_folders` gives them."""
    return {COMPONENTS[CLIPTextConfig].text.digest: config.model.tokenizer}


def identity(vq: str | Path, tokenizers: Mapping[str, str | Path]) -> dict[str, str]:
    """What ids of pictures and of text depend on, as hashes: of the weights, and of what tokenizers compute; not of files.

    Args:
      vq: folder of the image tokenizer; tokenizers: {field: folder} of the text tokenizers, see `tokenizer_folders`.
    """
    hashes = {field: PromptTokenizer(folder).identity() for field, folder in tokenizers.items()}
    return {"image_tokenizer": weights_identity(vq, VQConfig.from_json(Path(vq) / "config.json"))} | hashes


def identity_of_files(vq: str | Path, tokenizers: Mapping[str, str | Path]) -> dict[str, str]:
    """As `identity`, of records that were made before 2026-11-26: hashes of the files."""
    hashes = {field: _hash(folder, "*") for field, folder in tokenizers.items()}
    return {"image_tokenizer": _hash(vq, "*.safetensors")} | hashes


def _hash(folder, pattern) -> str:
    found = hashlib.sha256()
    for path in sorted(Path(folder).glob(pattern)):
        if path.is_file() and not (pattern == "*" and path.suffix not in (".json", ".txt", ".model")):
            found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()
