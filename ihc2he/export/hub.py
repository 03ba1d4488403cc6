"""Pushes a bundle with its card to the Hugging Face hub."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ihc2he.errors import ConfigError, DataError
from ihc2he.models.bundle import FILES, bundle_folder, load_bundle
from ihc2he.models.hub import endpoint, hub_id


def push(bundle: str | Path, repo: str, licence: str | None, author: str | None = None, public: bool = False) -> str:
    """Push a bundle and its card; return `owner/name@commit`, which names these weights for ever.

    A repository that is not there is made, private unless `public`.

    Args:
        bundle: a folder, a hub id, or `builtin`.
        repo: where to, `owner/name`.
        licence: SPDX identifier of the weights' licence.
        author: who made the weights.
        public: whether everybody may see them.

    Raises:
        ConfigError: without a licence or a login, for an id that is none, or a repository that is public already and
            should not be.
        DataError: if the bundle cannot be read, or the hub refuses it.
    """
    from huggingface_hub import HfApi, get_token

    found = hub_id(repo)
    if found is None or found.revision:
        msg = f"hub={repo}: expected the id of a repository on the hub, such as owner/name."
        raise ConfigError(msg)
    if not licence:
        msg = f"hub={repo}: state the licence of the weights: licence=CC-BY-4.0, or another SPDX identifier."
        raise ConfigError(msg)
    load_bundle(bundle)  # damaged weights stay here
    token = get_token()
    if not token:
        msg = f"hub={repo}: nobody is logged in to the hub. Run `hf auth login`, or set HF_TOKEN."
        raise ConfigError(msg)
    api = HfApi(endpoint=endpoint(), token=token)
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        if not public:
            _require_private(api.model_info(repo).private, repo)
        with tempfile.TemporaryDirectory() as made:
            _prepare(bundle_folder(bundle), Path(made), repo, licence, author)
            commit = api.upload_folder(repo_id=repo, folder_path=made, commit_message="Bundle of ihc2he")
    except ConfigError:
        raise
    except Exception as error:  # each version of the library has other errors for a network that fails
        cause = " ".join(str(error).split())[:200]
        msg = f"hub={repo}: the hub did not take it ({type(error).__name__}: {cause}). Check name, rights and network."
        raise DataError(msg) from error
    return f"{repo}@{commit.oid}"


def _require_private(is_private: bool | None, repo: str) -> None:
    if not is_private:
        msg = f"hub={repo}: is public already. Pass public=true to push there, or another name."
        raise ConfigError(msg)


def _prepare(bundle: Path, folder: Path, repo: str, licence: str, author: str | None) -> None:
    """Copy a bundle; its card also says licence, author, the hash of the weights, and how to use it from the hub."""
    from huggingface_hub import ModelCard

    for name in FILES[:2]:
        shutil.copyfile(bundle / name, folder / name)
    card = ModelCard((bundle / FILES[2]).read_text(encoding="utf-8") if (bundle / FILES[2]).is_file() else "")
    data: Any = card.data
    data.license, data.library_name = licence.lower(), "ihc2he"
    digest = json.loads((bundle / "config.json").read_text(encoding="utf-8")).get("sha256")
    card.text = card.text.replace("FOLDER_OR_HUB_ID", repo)
    card.text += f"\n## Weights\n\nLicence: {licence}. " + (f"Made by {author}. " if author else "")
    card.text += f"SHA-256 of model.safetensors: `{digest}`.\n"
    card.save(folder / FILES[2])
