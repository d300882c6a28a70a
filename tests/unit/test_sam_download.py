"""Downloads against a local server that stalls, cuts, redirects, lies about sizes and ignores ranges."""

import contextlib
import hashlib
import http.client
import http.server
import io
import os
import resource
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from rrlsam.cli import download_sam
from rrlsam.errors import BadInputError, ResourceError, UnsafeError
from rrlsam.system.stopping import Terminated
from rrlsam.teacher import part_files
from rrlsam.teacher.sam_download import Patience, _SafeRedirects, download, install
from rrlsam.teacher.sam_releases import RELEASES, SamRelease, cache_folder, require_sam

CONTENT = np.random.default_rng(0).bytes(300_000)
SUM = hashlib.sha256(CONTENT).hexdigest()
QUICK = Patience(stall_s=0.2, attempts=3, first_wait_s=0.001)

Behaviour = Callable[["Handler", int], None]
"""Answers a request; told which one it is, from 0 on."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Asks its server what to do."""

    server: "Server"  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        number = len(self.server.ranges)
        self.server.ranges.append(self.headers.get("Range"))
        with contextlib.suppress(ConnectionError):
            self.server.behave(self, number)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def start(self) -> int:
        """First byte that is asked for."""
        asked = self.headers.get("Range")
        return 0 if asked is None else int(asked.removeprefix("bytes=").removesuffix("-"))

    def answer(self, body: bytes, *, length: int | None = None, part: bool = True) -> None:
        """Send `body` from the asked byte on; `length` is what the header says of the whole, None: the truth."""
        start = self.start() if part else 0
        total = len(CONTENT) if length is None else length
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(total - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        self.wfile.write(body[start:])


class Server(http.server.ThreadingHTTPServer):
    """Serves one behaviour; remembers the ranges that were asked for."""

    daemon_threads = True

    def __init__(self, behave: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave = behave
        self.ranges: list[str | None] = []
        self.release = release_at(f"http://127.0.0.1:{self.server_port}/tiny.pth")


def release_at(url: str, *, size: int | None = len(CONTENT), sha256: str = SUM) -> SamRelease:
    return SamRelease(name="vit_b", file="tiny.pth", url=url, sha256=sha256, size=size)


@pytest.fixture
def serve() -> Iterator[Callable[[Behaviour], Server]]:
    servers: list[Server] = []

    def start(behave: Behaviour) -> Server:
        servers.append(Server(behave))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def whole(request: Handler, number: int) -> None:
    request.answer(CONTENT)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def assert_installed(folder: Path) -> None:
    assert files(folder) == ["tiny.pth"]
    assert (folder / "tiny.pth").read_bytes() == CONTENT


def test_a_release_is_downloaded_into_a_new_folder(serve, tmp_path):
    assert download(serve(whole).release, tmp_path / "new" / "cache") == tmp_path / "new" / "cache" / "tiny.pth"
    assert_installed(tmp_path / "new" / "cache")


def test_a_cut_transfer_goes_on_where_it_was_cut(serve, tmp_path):
    def cut(request: Handler, number: int) -> None:
        request.answer(CONTENT[:100_000] if number == 0 else CONTENT)

    server = serve(cut)
    download(server.release, tmp_path, patience=QUICK)
    assert_installed(tmp_path)
    assert server.ranges == [None, "bytes=100000-"]


def test_a_stalled_transfer_goes_on(serve, tmp_path):
    def stall(request: Handler, number: int) -> None:
        request.answer(CONTENT[:100_000] if number == 0 else CONTENT)
        if number == 0:
            request.wfile.flush()
            time.sleep(0.5)

    server = serve(stall)
    download(server.release, tmp_path, patience=QUICK)
    assert_installed(tmp_path)
    assert len(server.ranges) == 2


def test_a_server_that_ignores_ranges_sends_all_again(serve, tmp_path):
    def ignore(request: Handler, number: int) -> None:
        request.answer(CONTENT[:100_000] if number == 0 else CONTENT, part=False)

    server = serve(ignore)
    download(server.release, tmp_path, patience=QUICK)
    assert_installed(tmp_path)
    assert server.ranges == [None, "bytes=100000-"]


def test_a_busy_server_is_asked_again(serve, tmp_path):
    def busy(request: Handler, number: int) -> None:
        request.send_error(503) if number < 2 else request.answer(CONTENT)

    download(serve(busy).release, tmp_path, patience=QUICK)
    assert_installed(tmp_path)


def test_a_redirection_is_followed(serve, tmp_path):
    def redirect(request: Handler, number: int) -> None:
        if number:
            return request.answer(CONTENT)
        request.send_response(302)
        request.send_header("Location", "/elsewhere")
        request.end_headers()

    download(serve(redirect).release, tmp_path, patience=QUICK)
    assert_installed(tmp_path)


def test_a_redirection_to_a_local_file_is_refused(serve, tmp_path):
    def redirect(request: Handler, number: int) -> None:
        request.send_response(302)
        request.send_header("Location", "file:///etc/passwd")
        request.end_headers()

    with pytest.raises(UnsafeError, match="file:///etc/passwd, which is not safe"):
        download(serve(redirect).release, tmp_path, patience=QUICK)
    assert files(tmp_path) == []


def test_a_redirection_away_from_https_is_refused(serve):
    request = urllib.request.Request("https://127.0.0.1/tiny.pth")
    for url, safe in (("http://127.0.0.1/", False), ("https://127.0.0.1/", True)):
        with contextlib.nullcontext() if safe else pytest.raises(urllib.error.HTTPError):
            _SafeRedirects().redirect_request(request, io.BytesIO(), 302, "", http.client.HTTPMessage(), url)


@pytest.mark.parametrize("length", [len(CONTENT) + 5, len(CONTENT) - 5])
def test_a_server_that_announces_another_size_is_not_listened_to(serve, tmp_path, length):
    with pytest.raises(BadInputError, match=f"sends {length} bytes, the official file has {len(CONTENT)}"):
        download(serve(lambda request, _: request.answer(CONTENT, length=length)).release, tmp_path, patience=QUICK)
    assert files(tmp_path) == []


def test_a_server_that_sends_more_than_announced_by_nobody_is_stopped(serve, tmp_path):
    def endless(request: Handler, number: int) -> None:
        request.send_response(200)
        request.end_headers()
        for _ in range(10):
            request.wfile.write(CONTENT)

    with pytest.raises(BadInputError, match="the official file has 300000"):
        download(serve(endless).release, tmp_path, patience=QUICK)
    assert files(tmp_path) == []


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_file_of_another_content_is_refused_and_not_kept(serve, tmp_path, size):
    url = serve(lambda request, _: request.answer(CONTENT[::-1])).release.url
    with pytest.raises(BadInputError, match=rf"SHA-256 \w+, the official file has {SUM}; nothing is kept"):
        download(release_at(url, size=size), tmp_path, patience=QUICK)
    assert files(tmp_path) == []


def test_without_a_pinned_size_the_sum_decides(serve, tmp_path):
    def cut(request: Handler, number: int) -> None:
        request.answer(CONTENT[:100_000] if number == 0 else CONTENT)

    download(release_at(serve(cut).release.url, size=None), tmp_path, patience=QUICK)
    assert_installed(tmp_path)


def test_without_a_network_the_way_by_hand_is_told(tmp_path):
    release = release_at("http://127.0.0.1:9/tiny.pth")
    with pytest.raises(ResourceError) as caught:
        download(release, tmp_path, patience=QUICK)
    for part in (release.url, SUM, "rrlsam_download_sam vit_b --from FILE"):
        assert part in str(caught.value)
    assert files(tmp_path) == []


def test_a_missing_page_is_not_asked_for_again(serve, tmp_path):
    server = serve(lambda request, _: request.send_error(404))
    with pytest.raises(ResourceError, match="the server answered 404"):
        download(server.release, tmp_path, patience=QUICK)
    assert len(server.ranges) == 1
    assert files(tmp_path) == []


def test_a_download_that_was_given_up_is_gone_on_with_later(serve, tmp_path):
    def cut_for_long(request: Handler, number: int) -> None:
        request.answer(CONTENT[:100_000] if number < QUICK.attempts else CONTENT)

    server = serve(cut_for_long)
    with pytest.raises(ResourceError, match="cut after 100000 of 300000 bytes"):
        download(server.release, tmp_path, patience=QUICK)
    assert not (tmp_path / "tiny.pth").exists()
    download(server.release, tmp_path, patience=QUICK)
    assert_installed(tmp_path)
    assert server.ranges[-1] == "bytes=100000-"


@pytest.mark.parametrize("length", [1000, len(CONTENT), len(CONTENT) + 1000])
def test_a_part_of_another_file_does_no_harm(serve, tmp_path, length):
    (tmp_path / ".part-1-0-tiny.pth").write_bytes(b"x" * length)
    download(serve(whole).release, tmp_path, patience=QUICK)
    assert_installed(tmp_path)


def test_several_first_runs_at_once_end_with_one_good_file(serve, tmp_path):
    together = threading.Barrier(3)
    failures: list[BaseException] = []

    def slow(request: Handler, number: int) -> None:
        together.wait(5)
        request.answer(CONTENT)

    def first_run(release: SamRelease) -> None:
        try:
            download(release, tmp_path, patience=Patience(stall_s=5.0))
        except BaseException as error:
            failures.append(error)

    server = serve(slow)
    threads = [threading.Thread(target=first_run, args=(server.release,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert server.ranges == [None] * 3
    assert_installed(tmp_path)


def test_a_new_part_that_another_process_took_is_left_to_it(tmp_path, monkeypatch):
    adopt, taken = part_files._adopt, []

    def first_by_another(part: Path) -> io.FileIO | None:
        if taken:
            return adopt(part)
        taken.append(adopt(part))
        return None

    monkeypatch.setattr(part_files, "_adopt", first_by_another)
    part, stream = part_files.open_part(tmp_path / "file.pth")
    assert taken[0].name != stream.name == part
    taken[0].close()
    stream.close()


@pytest.mark.parametrize("end", [KeyboardInterrupt, Terminated])
def test_an_interruption_keeps_what_is_there_for_the_next_run(serve, tmp_path, end):
    class Interrupted:
        def __call__(self, description: str, total: int) -> contextlib.AbstractContextManager[Callable[[], None]]:
            raise end

    def half(request: Handler, number: int) -> None:
        request.answer(CONTENT[:100_000] if number == 0 else CONTENT)

    server = serve(half)
    with pytest.raises(ResourceError):
        download(server.release, tmp_path, patience=Patience(attempts=1))
    with pytest.raises(end):
        download(server.release, tmp_path, Interrupted())
    download(server.release, tmp_path)
    assert server.ranges == [None, "bytes=100000-", "bytes=100000-"]
    assert_installed(tmp_path)


def test_a_full_disk_leaves_no_half_file(serve, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ResourceError, match=r"cannot be written .*rrlsam_cache"):
            download(serve(whole).release, tmp_path, patience=QUICK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == []


def test_a_disk_that_is_too_small_is_found_out_before_the_first_byte(serve, tmp_path):
    size = 1 << 60
    server = serve(lambda request, _: request.answer(CONTENT, length=size))
    with pytest.raises(ResourceError, match="MB are needed"):
        download(release_at(server.release.url, size=size), tmp_path, patience=QUICK)
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot be written"):
        download(release_at("http://127.0.0.1:9/"), tmp_path / "file" / "cache")


def test_the_progress_counts_mebibytes(serve, tmp_path):
    steps: list[object] = []

    @contextlib.contextmanager
    def progress(description: str, total: int) -> Iterator[Callable[[], None]]:
        steps.append((description, total))
        yield lambda: steps.append(1)

    content = CONTENT * 10
    release = release_at("", size=len(content), sha256=hashlib.sha256(content).hexdigest())

    def three_mb(request: Handler, number: int) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(content)

    url = serve(three_mb).release.url
    download(
        SamRelease(name="x", file="tiny.pth", url=url, sha256=release.sha256, size=release.size), tmp_path, progress
    )
    assert steps == [("Downloading tiny.pth (MiB)", 2), 1, 1]


def test_a_file_fetched_by_hand_is_installed(tmp_path):
    (tmp_path / "from_a_stick").write_bytes(CONTENT)
    releases = [release_at("", sha256="0" * 64), release_at("")]
    assert install(tmp_path / "from_a_stick", releases, tmp_path / "cache") == tmp_path / "cache" / "tiny.pth"
    assert_installed(tmp_path / "cache")
    assert install(tmp_path / "cache" / "tiny.pth", releases, tmp_path / "cache").read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[::-1], b""])
def test_a_wrong_file_is_not_installed(tmp_path, content):
    (tmp_path / "wrong").write_bytes(content)
    with pytest.raises(BadInputError, match=rf"has {len(content)} bytes .*expected {SUM} \(tiny\.pth\)"):
        install(tmp_path / "wrong", [release_at("")], tmp_path / "cache")
    assert files(tmp_path / "cache") == []


def test_a_missing_file_is_not_installed(tmp_path):
    with pytest.raises(ResourceError, match=r"absent: no such file; --from needs tiny\.pth"):
        install(tmp_path / "absent", [release_at("")], tmp_path)


def test_the_pins_are_the_official_ones():
    assert [(release.file, release.size, release.sha256[:8]) for release in RELEASES.values()] == [
        ("sam_vit_b_01ec64.pth", 375_042_383, "ec2df627"),
        ("sam_vit_l_0b3195.pth", None, "3adcc431"),
        ("sam_vit_h_4b8939.pth", 2_564_550_879, "a7bf3b02"),
    ]


def test_the_cache_folder_is_the_named_one_or_the_platforms(tmp_path):
    assert cache_folder({}, tmp_path) == tmp_path / ".cache" / "rrlsam"
    assert cache_folder({"XDG_CACHE_HOME": "/caches"}, tmp_path) == Path("/caches/rrlsam")
    assert cache_folder({"XDG_CACHE_HOME": "relative"}, tmp_path) == tmp_path / ".cache" / "rrlsam"
    assert cache_folder({"XDG_CACHE_HOME": "/caches", "rrlsam_cache": "/mine"}, tmp_path) == Path("/mine")


@pytest.fixture
def pinned(serve, monkeypatch) -> Server:
    """A server that stands for the official one of vit_b."""
    server = serve(whole)
    monkeypatch.setitem(RELEASES, "vit_b", server.release)
    return server


@pytest.mark.parametrize("choice", [None, "vit_b"])
def test_the_first_use_downloads_and_the_second_does_not(pinned, tmp_path, choice):
    for _ in range(2):
        teacher = require_sam(choice, tmp_path)
        assert teacher is not None
        assert (teacher.path, teacher.sha256) == (tmp_path / "tiny.pth", SUM)
    assert len(pinned.ranges) == 1


def test_installed_weights_that_are_damaged_are_refused(pinned, tmp_path):
    (tmp_path / "tiny.pth").write_bytes(CONTENT[:-1])
    with pytest.raises(BadInputError, match=r"has 299999 bytes, the official file has 300000; delete it.*--from FILE"):
        require_sam(None, tmp_path)


def test_without_weights_and_network_every_way_on_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(RELEASES, "vit_b", release_at("http://127.0.0.1:9/tiny.pth"))
    monkeypatch.setattr("rrlsam.teacher.sam_download.time.sleep", lambda seconds: None)
    with pytest.raises(ResourceError, match=r"--from FILE; or give --sam FILE, or --sam none"):
        require_sam(None, tmp_path)


def test_the_users_choice_of_weights_is_taken(tmp_path):
    assert require_sam("none", tmp_path) is None
    (tmp_path / "own.pth").write_bytes(CONTENT)
    teacher = require_sam(str(tmp_path / "own.pth"), tmp_path)
    assert teacher is not None
    assert (teacher.path, teacher.sha256) == (tmp_path / "own.pth", SUM)
    with pytest.raises(ResourceError, match="no such file; --sam needs vit_b, vit_l, vit_h, a file"):
        require_sam(str(tmp_path / "absent.pth"), tmp_path)
    with pytest.raises(ResourceError, match="is no file; --sam needs"):
        require_sam(str(tmp_path), tmp_path)


def test_the_command_downloads_once_and_prints_the_path(pinned, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("rrlsam_cache", str(tmp_path))
    for _ in range(2):
        assert download_sam.main(["vit_b", "--disable_progress_bar"]) == 0
        assert capsys.readouterr().out == f"{tmp_path / 'tiny.pth'}\n"
    assert len(pinned.ranges) == 1


def test_the_command_replaces_a_damaged_file(pinned, tmp_path, monkeypatch):
    monkeypatch.setenv("rrlsam_cache", str(tmp_path))
    (tmp_path / "tiny.pth").write_bytes(b"half")
    assert download_sam.main(["--disable_progress_bar"]) == 0
    assert_installed(tmp_path)


def test_the_command_installs_a_file_without_a_network(pinned, tmp_path, monkeypatch):
    monkeypatch.setenv("rrlsam_cache", str(tmp_path / "cache"))
    (tmp_path / "stick").write_bytes(CONTENT)
    assert download_sam.main(["--from", str(tmp_path / "stick")]) == 0
    assert pinned.ranges == []
    assert_installed(tmp_path / "cache")


@pytest.mark.parametrize(("content", "code"), [(b"wrong", 3), (None, 4)])
def test_the_command_refuses_what_is_no_release(pinned, tmp_path, monkeypatch, capsys, content, code):
    monkeypatch.setenv("rrlsam_cache", str(tmp_path / "cache"))
    if content is not None:
        (tmp_path / "stick").write_bytes(content)
    assert download_sam.main(["vit_b", "--from", str(tmp_path / "stick")]) == code
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not os.path.exists(tmp_path / "cache")
