"""Bundles on the Hugging Face hub: `owner/name`, or pinned, `owner/name@revision`."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ihc2he.errors import DataError

log = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubId(NamedTuple):
    """A repository on the hub.

    Attributes:
        repo: `owner/name`.
        revision: a commit, tag or branch; None: the newest.
    """

    repo: str
    revision: str | None


def hub_id(source: str) -> HubId | None:
    """Return the repository that a text names; None if it is none.

    >>> hub_id("owner/name@v1"), hub_id("./folder/name"), hub_id("name")
    (HubId(repo='owner/name', revision='v1'), None, None)
    """
    found = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?", source)
    return HubId(*found.groups()) if found else None


def pull(source: str, files: Sequence[str], cached: bool = False) -> Path:
    """Return the folder with files of a repository, which are loaded if they were not before.

    Args:
        source: `owner/name` or `owner/name@revision`.
        files: their names.
        cached: take only what was loaded before.

    Raises:
        DataError: if the hub cannot be reached or does not give them.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    found = hub_id(source)
    if found is None:
        msg = f"{source}: expected the folder of a bundle, or a hub id such as owner/name or owner/name@revision."
        raise DataError(msg)
    try:
        folder = Path(
            snapshot_download(
                found.repo,
                revision=found.revision,
                allow_patterns=list(files),
                endpoint=endpoint(),
                local_files_only=cached,
            )
        )
    except Exception as error:  # each version of the library has other errors for a network that fails
        remedy = "Check id and network."
        if isinstance(error, RevisionNotFoundError):
            remedy = f"The repository has no revision '{found.revision}'."
        elif isinstance(error, RepositoryNotFoundError):
            remedy = "Check the id; for a private repository log in (hf auth login) or set HF_TOKEN."
        elif isinstance(error, LocalEntryNotFoundError):
            remedy = "It was not loaded before and the network does not reach the hub: connect once, or pass a folder."
        msg = f"{source}: no such folder, and the hub did not give it ({type(error).__name__}). {remedy}"
        raise DataError(msg) from error
    if not cached and not _COMMIT.fullmatch(found.revision or ""):
        log.info("%s is taken at commit %s; %s@%s pins it.", source, folder.name, found.repo, folder.name)
    return folder


def endpoint() -> str | None:
    """Return the address of the hub that the environment names; None: the usual one."""
    return os.environ.get("HF_ENDPOINT") or None
