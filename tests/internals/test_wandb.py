from ihc2he.internals.wandb import server


def test_the_server_is_the_one_of_the_environment(monkeypatch):
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.lab.example")
    assert server() == "https://wandb.lab.example"
    wandb.teardown()
    monkeypatch.delenv("WANDB_BASE_URL")
    assert server().startswith("https://")
