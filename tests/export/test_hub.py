"""Pushing bundles to the hub and pulling them, against a small stand-in of its API on this machine."""

import base64
import hashlib
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
import torch

from ihc2he.build import build
from ihc2he.errors import ConfigError, DataError
from ihc2he.export.__main__ import main
from ihc2he.export.hub import push
from ihc2he.loggers.lineage import inputs
from ihc2he.models.bundle import load_bundle, save_bundle

NODE = {"_target_": "ihc2he.models.translation.cyclegan.networks.ResnetGenerator", "width": 4, "n_blocks": 1}
TOKEN = "hf_test"


class Hub(ThreadingHTTPServer):
    """Keeps repositories with their commits in memory."""

    def __init__(self):
        self.repos = {}  # id: {"private": bool, "commits": {commit: {name: bytes}}, "head": commit}
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repo, files):
        own = self.repos[repo]
        content = own["commits"].get(own["head"], {}) | files
        own["head"] = hashlib.sha1(repr(sorted(content.items())).encode()).hexdigest()
        own["commits"][own["head"]] = content
        return own["head"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, headers=()):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def fail(self, status, code):
        self.answer({"error": code}, status, {"X-Error-Code": code})

    def may(self, repo):
        own = self.server.repos.get(repo)
        if own is None or (own["private"] and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self.fail(401, "RepoNotFound")
            return None
        return own

    def do_POST(self):
        path, body = urlsplit(self.path).path, self.body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.fail(401, "Unauthorized")
        if path == "/api/repos/create":
            said = json.loads(body)
            repo = f"{said['organization']}/{said['name']}" if said.get("organization") else f"me/{said['name']}"
            if repo in self.server.repos:
                return self.answer({"url": f"{self.server.url}/{repo}"}, 409)
            private = said.get("visibility") == "private" or bool(said.get("private"))
            self.server.repos[repo] = {"private": private, "commits": {}, "head": ""}
            return self.answer({"url": f"{self.server.url}/{repo}"})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        repo = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines if one["key"] == "file"
        }
        commit = self.server.commit(repo, files)
        return self.answer(
            {"success": True, "commitOid": commit, "commitUrl": f"{self.server.url}/{repo}/commit/{commit}"}
        )

    def do_GET(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[0] == "api":
            repo, rest = "/".join(parts[2:4]), parts[4:]
        else:
            repo, rest = "/".join(parts[:2]), parts[2:]
        own = self.may(repo)
        if own is None:
            return None
        revision = rest[1] if len(rest) > 1 else "main"
        commit = own["head"] if revision == "main" else revision
        if commit not in own["commits"]:
            return self.fail(404, "RevisionNotFound") if rest else self.answer(self.info(repo, own, commit, {}))
        files = own["commits"][commit]
        if rest[:1] == ["tree"]:
            return self.answer(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
            )
        if rest[:1] == ["resolve"]:
            data = files[rest[2]]
            return self.answer(data, headers={"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit})
        return self.answer(self.info(repo, own, commit, files))

    do_HEAD = do_GET  # noqa: N815

    def info(self, repo, own, commit, files):
        return {
            "id": repo,
            "modelId": repo,
            "sha": commit,
            "private": own["private"],
            "siblings": [{"rfilename": name} for name in files],
        }


@pytest.fixture
def hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def bundle(tmp_path):
    torch.manual_seed(0)
    info = {"module": NODE, "role": "translator", "stain_in": "IHC", "stain_out": "H&E", "mpp": 0.46}
    return save_bundle(build(NODE, torch.nn.Module), tmp_path / "g_ihc2he", info)


def weights(source):
    return torch.cat([value.flatten() for value in load_bundle(source)[0].state_dict().values()])


def test_what_was_pushed_is_pulled_at_its_commit_and_offline(hub, bundle, monkeypatch, capsys, caplog):
    assert main([str(bundle), "hub=me/g", "licence=CC-BY-4.0", "author=A. Author"]) == 0
    pinned = capsys.readouterr().out.split("weights=")[1].strip()
    assert pinned == f"me/g@{hub.repos['me/g']['head']}"
    assert hub.repos["me/g"]["private"]
    files = hub.repos["me/g"]["commits"][hub.repos["me/g"]["head"]]
    card = files["README.md"].decode()
    digest = hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert "license: cc-by-4.0" in card
    assert f"`{digest}`" in card
    assert 'load_bundle("me/g")' in card
    assert "A. Author" in card
    with caplog.at_level(logging.INFO, "ihc2he"):
        assert torch.equal(weights("me/g"), weights(bundle))
    assert f"{pinned} pins it" in caplog.text
    network = build(NODE, torch.nn.Module)  # other weights under the same name
    save_bundle(network, bundle, json.loads((bundle / "config.json").read_text()))
    second = push(bundle, "me/g", "CC-BY-4.0")
    assert second != pinned
    assert torch.equal(weights("me/g"), weights(second))
    first = weights(pinned)
    assert not torch.equal(first, weights(second))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody there
    assert torch.equal(weights(pinned), first)
    (entry,) = inputs({"model": {"weights": pinned}, "paths": {"output_dir": str(bundle.parent / "run")}}, None)
    assert (entry["kind"], entry["path"]) == ("bundle", pinned)
    with pytest.raises(
        DataError, match=r"me/other: no such folder, and the hub did not give it .*connect once, or pass"
    ):
        load_bundle("me/other")


def test_weights_that_are_not_those_of_the_card_are_refused(hub, bundle):
    push(bundle, "me/g", "MIT", public=True)
    good = hub.repos["me/g"]["commits"][hub.repos["me/g"]["head"]]
    swapped = hub.commit("me/g", {"model.safetensors": good["model.safetensors"][:-4] + b"\0\0\0\0"})
    with pytest.raises(DataError, match="by its sha256"):
        load_bundle(f"me/g@{swapped}")
    config = json.loads(good["config.json"])
    del config["sha256"]
    silent = hub.commit("me/g", {"config.json": json.dumps(config).encode()})
    with pytest.raises(DataError, match=r"does not say the sha256 of model\.safetensors"):
        load_bundle(f"me/g@{silent}")
    with pytest.raises(DataError, match="has no revision 'v9'"):
        load_bundle("me/g@v9")


def test_a_private_repository_is_not_for_everybody(hub, bundle, monkeypatch):
    pinned = push(bundle, "me/g", "MIT")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(DataError, match=r"for a private repository log in \(hf auth login\) or set HF_TOKEN"):
        load_bundle(pinned)
    with pytest.raises(DataError, match="the hub did not take it"):
        push(bundle, "me/g", "MIT")


def test_what_cannot_be_pushed_is_said_before_anything_is_sent(hub, bundle, tmp_path, monkeypatch, capsys):
    assert main([str(bundle), "hub=me/g"]) == 2
    assert "state the licence of the weights: licence=CC-BY-4.0" in capsys.readouterr().err
    assert main([str(bundle), "hub=me/g", "licence=MIT", "public=yes"]) == 2
    assert "public=yes: expected true or false" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="expected the id of a repository on the hub"):
        push(bundle, "g", "MIT")
    (bundle / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match="damaged"):
        push(bundle, "me/g", "MIT")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match=r"nobody is logged in to the hub\. Run `hf auth login`, or set HF_TOKEN"):
        push("builtin", "me/g", "MIT")
    assert not hub.repos


def test_a_public_repository_gets_no_weights_that_were_meant_to_be_private(hub, bundle):
    first = push(bundle, "me/g", "MIT", public=True)
    with pytest.raises(ConfigError, match=r"is public already\. Pass public=true"):
        push(bundle, "me/g", "MIT")
    assert first.endswith(hub.repos["me/g"]["head"])
