"""What is used of W&B that it does not promise to keep: where its settings name the server."""

from __future__ import annotations


def server() -> str:
    """Return the URL of the server that runs are sent to, as settings and environment name it."""
    import wandb

    return str(wandb.setup().settings.base_url)
