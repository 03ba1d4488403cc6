"""Private parts of W&B that are used here: where its settings name the server."""

from __future__ import annotations


def server() -> str:
    """Return the URL of the server for runs, from the settings and the environment."""
    import wandb

    return str(wandb.setup().settings.base_url)
