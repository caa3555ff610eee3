"""`editmgt serve`: edits over HTTP, and a page for browsers."""

import argparse
import importlib
import ipaddress
import socket
from pathlib import Path

from editmgt_jax.cli import shared
from editmgt_jax.errors import UserError


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Adds `serve`."""
    command = shared.add_command(
        commands, "serve", serve, "serve edits over HTTP; needs pip install 'editmgt_jax[serve]'"
    )
    command.add_argument("--model", metavar="DIR", help="model directory or hub name (default: the default model)")
    command.add_argument(
        "--page", action="store_true", help="a page for browsers, too; needs pip install 'editmgt_jax[page]'"
    )
    command.add_argument("--name", help="name of the model for clients (default: the directory's)")
    command.add_argument("--dtype", type=shared.dtype, help="of the weights; default as stored")
    command.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default 127.0.0.1)"
    )
    command.add_argument("--port", type=int, default=8000, help="port to listen on (default 8000; 0 finds a free one)")
    text = "file of keys, one a line, any of which a client must send; needed on any address but loopback"
    command.add_argument("--api-key-file", metavar="FILE", help=text)
    command.add_argument(
        "--warm", metavar="WxH,...", help="sizes of pictures whose programs are compiled before the start"
    )
    command.add_argument("--batch-size", type=shared.positive, help="pictures of a batch (default 8, on CPUs 1)")
    command.add_argument("--workers", type=shared.positive, help="batches decoded at once (default 1, on CPUs 2)")
    command.add_argument("--queue", type=shared.positive, default=64, help="requests that may wait (default 64)")
    command.add_argument(
        "--timeout", type=shared.positive, default=300, metavar="SECONDS", help="of a request (default 300)"
    )


def serve(args: argparse.Namespace) -> None:
    """Serves until a signal ends it."""
    keys = _keys(args.api_key_file)
    if not keys and not _is_loopback(args.host):
        raise UserError(f"an address that others reach needs --api-key-file; {args.host!r} is not loopback")
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port must be from 0 to 65535; got {args.port}")
    sizes = [_size(text) for text in args.warm.split(",")] if args.warm else []
    extra = "page" if args.page else "serve"
    try:
        from editmgt_jax.serving.run import run

        if args.page:
            importlib.import_module("editmgt_jax.serving.page")
    except ImportError as error:
        raise UserError(f"serving needs {error.name}: pip install 'editmgt_jax[{extra}]'") from error
    from editmgt_jax.serving.limits import Limits

    _check_address(args.host, args.port)
    shared.use_disk_cache()
    run(
        args.model,
        name=args.name or (Path(args.model).name if args.model else "default"),
        dtype=args.dtype,
        host=args.host,
        port=args.port,
        keys=keys,
        warm=sizes,
        limits=Limits(queue=args.queue, request_seconds=args.timeout),
        batch=args.batch_size,
        workers=args.workers,
        with_page=args.page,
    )


def _check_address(host, port) -> None:
    """Errors: UserError for an address that cannot be listened on, before a model is read."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host and --port must be free to listen on; {host} port {port} is not: {reason}") from error


def _keys(path) -> list[str]:
    if path is None:
        return []
    text = Path(path).read_bytes().decode(errors="replace")
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if not keys or any(not key.isascii() or " " in key for key in keys):
        raise UserError(f"a file of keys has one a line, of letters without spaces; {path} has none, or others")
    return keys


def _is_loopback(host) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _size(text) -> tuple[int, int]:
    width, _, height = text.strip().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise UserError(f"--warm must be sizes such as 1024x1024,512x768; got {text!r}")
    from editmgt_jax.images import check_size

    check_size((int(width), int(height)), "--warm")
    return int(width), int(height)
