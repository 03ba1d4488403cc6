"""Downloads from a server on this machine that can be made to fail in every way a real one does."""

import io
import zipfile
from collections import deque
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest

from ihc2he.data import download as module
from ihc2he.data.download import download, unpack
from ihc2he.errors import DataError

CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Server:
    """What the server does: its content, its version, how many bytes it sends before it hangs up, what it was asked."""

    def __init__(self):
        self.content, self.etag, self.last_modified = CONTENT, '"1"', None
        self.ranges = True
        self.cuts: deque[int] = deque()  # one for each of the next answers
        self.status = 200
        self.asked: list[str | None] = []
        self.url = ""


@pytest.fixture
def server(monkeypatch):
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            state.asked.append(wanted)
            if state.status != 200:
                self.send_error(state.status)
                return
            same = self.headers.get("If-Range") in (None, state.etag, state.last_modified)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and same and state.ranges else 0
            if start >= len(state.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(state.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = state.content[start:]
            self.send_response(206 if start else 200)
            for name, value in (("ETag", state.etag), ("Last-Modified", state.last_modified)):
                if value:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.cuts.popleft()] if state.cuts else body)

        def log_message(self, *arguments):
            pass

    monkeypatch.setattr(module, "WAIT", 0)
    monkeypatch.setenv("no_proxy", "*")
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    state.url = f"http://127.0.0.1:{http.server_port}/fold_1.zip"
    yield state
    http.shutdown()
    http.server_close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "fold_1.zip"


def test_a_file_arrives_with_its_checksum(server, path):
    checksum = sha256(CONTENT).hexdigest()
    assert download(server.url, path) == checksum
    assert path.read_bytes() == CONTENT
    assert (path.parent / "fold_1.zip.sha256").read_text() == f"{checksum}  fold_1.zip\n"
    assert sorted(file.name for file in path.parent.iterdir()) == ["fold_1.zip", "fold_1.zip.sha256"]
    assert download(server.url, path) == checksum
    assert server.asked == [None], "a second call asks for nothing"


def test_a_broken_connection_continues_where_it_stopped(server, path):
    server.cuts.extend([1_000_000, 500_000])
    download(server.url, path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-", "bytes=1500000-"]


def test_the_next_call_continues_a_download_that_was_given_up(server, path, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    server.cuts.append(2_000_000)
    with pytest.raises(DataError, match=r"failed 1 times.*2000000 of 3000000.*2\.0 MB are kept in .*run again"):
        download(server.url, path)
    assert not path.exists()
    download(server.url, path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=2000000-"]


@pytest.mark.parametrize(
    ("etag", "ranges", "resumes"),
    [('"1"', True, True), ('"1"', False, True), (None, True, False), ('W/"1"', True, False)],
)
def test_bytes_of_two_versions_are_never_mixed(server, path, monkeypatch, etag, ranges, resumes):
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    server.etag, server.ranges = etag, ranges
    server.cuts.append(1_000_000)
    with pytest.raises(DataError):
        download(server.url, path)
    server.content, server.etag = CONTENT[::-1], etag and etag.replace("1", "2")
    download(server.url, path)
    assert path.read_bytes() == CONTENT[::-1]
    assert server.asked == [None, "bytes=1000000-" if resumes else None]


def test_the_date_will_do_where_there_is_no_etag(server, path):
    server.etag, server.last_modified = None, "Mon, 01 Jan 2024 00:00:00 GMT"
    server.cuts.append(1_000_000)
    download(server.url, path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-"]


def test_a_process_killed_before_the_last_rename_has_nothing_more_to_fetch(server, path):
    path.parent.mkdir()
    (path.parent / "fold_1.zip.part").write_bytes(CONTENT)
    (path.parent / "fold_1.zip.part.version").write_text('"1"')
    download(server.url, path)
    assert path.read_bytes() == CONTENT
    assert server.asked == ["bytes=3000000-"]


def test_too_many_bytes_start_again(server, path):
    path.parent.mkdir()
    (path.parent / "fold_1.zip.part").write_bytes(CONTENT + b"?")
    (path.parent / "fold_1.zip.part.version").write_text('"1"')
    download(server.url, path)
    assert path.read_bytes() == CONTENT


def test_a_refusal_is_not_repeated_and_an_outage_is(server, path):
    server.status = 404
    with pytest.raises(
        DataError, match=r"127\.0\.0\.1.*fold_1\.zip: the server answered 404 Not Found\. Check the address"
    ):
        download(server.url, path)
    assert len(server.asked) == 1
    server.status = 503
    with pytest.raises(DataError, match=r"failed 5 times, the last time with: HTTP Error 503"):
        download(server.url, path)
    assert len(server.asked) == 6
    assert not path.exists()


def test_nobody_listens(path, monkeypatch):
    monkeypatch.setattr(module, "WAIT", 0)
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(DataError, match=r"the download failed 5 times.*Connection refused"):
        download("http://127.0.0.1:9/fold_1.zip", path)


def test_other_content_than_before_is_refused(server, path):
    download(server.url, path)
    path.unlink()
    server.content = CONTENT[::-1]
    with pytest.raises(DataError, match=rf"but an earlier download had {sha256(CONTENT).hexdigest()} .*Delete fold_1"):
        download(server.url, path)
    assert not path.exists()


def test_a_file_put_there_by_hand_is_taken_and_its_checksum_noted(server, path):
    path.parent.mkdir()
    path.write_bytes(b"mine")
    assert download(server.url, path) == sha256(b"mine").hexdigest()
    assert not server.asked
    assert (path.parent / "fold_1.zip.sha256").is_file()


def test_a_full_disk_is_told_before_the_download(server, path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2_000_000))
    with pytest.raises(DataError, match=r"0\.0 GB are needed, 0\.0 GB are free\. Choose another folder"):
        download(server.url, path)


def archive(path, entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as content:
        for name, data in entries.items():
            content.writestr(name, data)
    path.write_bytes(buffer.getvalue())
    return path


def test_unpacking_gives_the_files_and_leaves_those_that_are_there(tmp_path):
    zipped = archive(tmp_path / "a.zip", {"Fold 1/": b"", "Fold 1/x.npy": b"12345", "Fold 1/y.npy": b"123"})
    (tmp_path / "out" / "Fold 1").mkdir(parents=True)
    (tmp_path / "out" / "Fold 1" / "x.npy").write_bytes(b"54321")
    (tmp_path / "out" / "Fold 1" / "y.npy").write_bytes(b"1")  # of another size, so not whole
    unpack(zipped, tmp_path / "out")
    assert (tmp_path / "out/Fold 1/x.npy").read_bytes() == b"54321"
    assert (tmp_path / "out/Fold 1/y.npy").read_bytes() == b"123"
    assert sorted(file.name for file in (tmp_path / "out/Fold 1").iterdir()) == ["x.npy", "y.npy"]


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_archive_is_named_and_leaves_nothing(tmp_path, damage):
    zipped = archive(tmp_path / "a.zip", {"x.npy": CONTENT[:100_000]})
    data = bytearray(zipped.read_bytes())
    data[50_000] ^= 255
    zipped.write_bytes(data if damage == "flipped" else data[:60_000])
    with pytest.raises(DataError, match=r"a\.zip: damaged .*Delete it together with a\.zip\.sha256"):
        unpack(zipped, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_an_archive_cannot_write_outside(tmp_path):
    zipped = archive(tmp_path / "a.zip", {"../evil.txt": b"x"})
    with pytest.raises(DataError, match=r"evil\.txt lies outside"):
        unpack(zipped, tmp_path / "out")
    assert not (tmp_path / "evil.txt").exists()


def test_a_disk_too_small_for_the_content_is_told_first(tmp_path, monkeypatch):
    zipped = archive(tmp_path / "a.zip", {"x.npy": b"12345"})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=4))
    with pytest.raises(DataError, match="Choose another folder"):
        unpack(zipped, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
