"""The command `python -m ihc2he.app`."""

import logging
import secrets
import socket
import sys
from contextlib import suppress
from pathlib import Path

from ihc2he.arguments import keyword_arguments
from ihc2he.errors import ConfigError, Ihc2heError

HELP = """\
Serve a page on which images are tried and nuclei corrected.

  python -m ihc2he.app [path=FOLDER] [out=FOLDER] [weights=BUNDLE] [generator=BUNDLE] [host=127.0.0.1] [port=8501]

  path          folder of images and slides that the page may open; without it only what is dropped on the page
  out           folder for corrections and fine-tuned weights; without it nothing is saved
  weights       of the segmenter: RUN/bundles/segmenter, a hub id; builtin = the weights in the box
  generator     weights that translate IHC to H&E: RUN/bundles/g_ihc2he; a choice beside those without weights
  host          address to serve at; any but this machine's own needs the token that is printed   [host=127.0.0.1]
  port          0 = any free one                                                                   [port=8501]
  upload_mb     largest image that can be dropped                                                  [upload_mb=256]
  keep_minutes  how long results are kept after the page was closed                                [keep_minutes=30]
"""


def main(arguments: list[str]) -> int:
    """Return the exit status of the command line: 0, or 2 after one line that says what is wrong."""
    if any(a in ("-h", "--help", "help") for a in arguments):
        print(HELP, end="")
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        serve(**keyword_arguments(serve, arguments, "ihc2he.app"))
    except (Ihc2heError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def serve(
    path: str | None = None,
    out: str | None = None,
    weights: str = "builtin",
    generator: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8501,
    upload_mb: float = 256,
    keep_minutes: float = 30,
) -> None:
    """Serve the page until it is interrupted; the arguments are those of the command line.

    Raises:
        ConfigError: if a package is missing, or a setting cannot work.
    """
    try:
        import uvicorn

        from ihc2he.app.guard import is_loopback
        from ihc2he.app.server import create_app
        from ihc2he.app.settings import Settings
    except ImportError as error:
        msg = f'The page needs {error.name}: pip install "ihc2he[app]".'
        raise ConfigError(msg) from error
    from ihc2he.app.analysis import Networks

    folder = None if path is None else Path(path).expanduser()
    if folder is not None and not folder.is_dir():
        msg = f"path={path}: there is no such folder."
        raise ConfigError(msg)
    if min(upload_mb, keep_minutes) <= 0 or not 0 <= port < 1 << 16:
        msg = f"upload_mb={upload_mb} and keep_minutes={keep_minutes} have to be above 0, port={port} 0 to 65535."
        raise ConfigError(msg)
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        msg = f"host={host} port={port}: cannot be served there ({error.strerror}). Choose another port=, or 0 for any."
        raise ConfigError(msg) from error
    with listening, suppress(KeyboardInterrupt):
        settings = Settings(
            Networks(weights, generator),
            host,
            None if is_loopback(host) else secrets.token_urlsafe(24),
            folder,
            None if out is None else Path(out),
            upload_mb,
            keep_minutes=keep_minutes,
        )
        print(f"Open {_address(host, listening.getsockname()[1], settings.token)} (Ctrl+C ends it)", flush=True)
        config = uvicorn.Config(create_app(settings), log_level="warning", timeout_graceful_shutdown=3)
        uvicorn.Server(config).run(sockets=[listening])


def _address(host: str, port: int, token: str | None) -> str:
    """Return what to open in a browser.

    >>> _address("::1", 8501, None), _address("server", 80, "x")
    ('http://[::1]:8501/', 'http://server:80/?token=x')
    """
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/{f'?token={token}' if token else ''}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
