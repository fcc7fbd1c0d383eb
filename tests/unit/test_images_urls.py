"""Images from URLs: what a server may do, right and wrong, and what becomes of it."""

import contextlib
import datetime
import hashlib
import ipaddress
import os
import socket
import ssl
import subprocess
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import pytest_vmfest
from pytest_vmfest.errors import ImageExistsError, ImageFetchError, ImageInvalidError
from pytest_vmfest.images import fetch
from pytest_vmfest.images.store import ImageStore
from pytest_vmfest.waiting import Deadline, wait_for

MIB = 1 << 20
DISK = b"disk".ljust(510, b"\0") + b"\x55\xaa" + bytes(MIB) + os.urandom(MIB) + b"x" * (MIB - 512)


class Handler(BaseHTTPRequestHandler):
    """A path says what the server does."""

    def do_GET(self):
        """Answer as the path's first part says."""
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        getattr(self, self.path.split("/")[1], self.missing)()

    def head(self, code=200, **headers):
        """Send status and headers."""
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def missing(self):
        self.head(404, Content_Length=0)

    def good(self):
        self.head(Content_Length=len(DISK))
        self.wfile.write(DISK)

    def unannounced(self):
        self.head()
        self.wfile.write(DISK)

    def page(self):
        self.head(Content_Length=20)
        self.wfile.write(b"<html>Log in!</html>")

    def short(self):
        self.head(Content_Length=len(DISK) + 1)
        self.wfile.write(DISK)

    def unfinished(self):
        self.protocol_version = "HTTP/1.1"
        self.head(Transfer_Encoding="chunked")
        self.wfile.write(b"%x\r\n%b\r\n" % (len(DISK), DISK))

    def stalled(self):
        self.head(Content_Length=len(DISK))
        self.wfile.write(DISK[: 2 * MIB])
        self.wfile.flush()
        self.server.go_on.wait(30)
        self.wfile.write(DISK[2 * MIB :])

    def moved(self):
        self.head(302, Location="/good/other-name.img", Content_Length=0)

    def loop(self):
        self.head(302, Location=self.path, Content_Length=0)

    def busy(self):
        self.head(503, Content_Length=0)

    def secret(self):
        self.good() if self.headers.get("Authorization") else self.head(401, Content_Length=0)

    def handle(self):
        """A client that goes away is no news."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *_arguments):
        """Tell nobody."""


def serve(server):
    """Run a server; the function returned ends it."""
    server.asked, server.go_on, server.daemon_threads = [], threading.Event(), False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def end():
        server.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()

    return end


@pytest.fixture
def server(monkeypatch):
    """A server on loopback, never reached through a proxy; ``url`` is its address."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_port}"
    end = serve(server)
    yield server
    end()


@pytest.fixture
def steps():
    """What was told as progress."""
    return []


@pytest.fixture
def store(tmp_path, steps):
    """A store that has no recipe to build."""
    return ImageStore(tmp_path / "home", pytest.fail, steps.append)


def leftovers(store):
    """All that is in the folder of images."""
    return [path.name for path in (store.home / "images").iterdir()]


@pytest.mark.parametrize("path", ["good", "unannounced", "moved"])
def test_download(server, store, steps, path):
    """An image comes byte for byte, with or without its length announced, and over a redirect."""
    model = store.add(f"{server.url}/{path}/debian-12.img?version=1#top")
    assert model.name == "debian-12"
    assert model.disk.read_bytes() == DISK
    downloading = [step for step in steps if step.text == "downloading"]
    assert [step.done for step in downloading] == [MIB, 2 * MIB, 3 * MIB]
    assert {step.total for step in downloading} == {None if path == "unannounced" else len(DISK)}
    assert leftovers(store) == ["debian-12"]


@pytest.mark.parametrize(
    ("path", "said", "hint"),
    [
        ("missing", "HTTP 404", "check the address"),
        ("busy", "HTTP 503", "try again later"),
        ("secret", "HTTP 401", "netrc"),
        (
            "short",
            f"truncated: .*{len(DISK)} of {len(DISK) + 1} bytes|truncated: the server closed",
            "try again",
        ),
        ("unfinished", "truncated: the server closed the connection too early", "try again"),
        ("loop", "redirects without end", "check the address"),
    ],
)
def test_failed_downloads(server, store, path, said, hint):
    """Every failure names URL and reason, says what to do, and leaves nothing."""
    url = f"{server.url}/{path}/disk.img"
    with pytest.raises(ImageFetchError, match=said) as caught:
        store.add(url)
    assert url in str(caught.value)
    assert hint in caught.value.hint
    assert leftovers(store) == []


def test_nobody_listens(store, monkeypatch):
    """A refused connection is told as such."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/disk.img"
        with pytest.raises(ImageFetchError, match="Connection refused") as caught:
            store.add(url)
    assert url in str(caught.value)
    assert leftovers(store) == []


def test_unknown_host(store, monkeypatch):
    """A host that does not exist is told as such."""

    def unknown(*_arguments, **_more):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ImageFetchError, match="the host's name is not known"):
        store.add("http://images.invalid/disk.img")


def test_a_server_that_falls_silent(server, store, monkeypatch):
    """A download in which nothing comes any more ends after the time-out."""
    monkeypatch.setattr(fetch, "READ_TIMEOUT_S", 0.2)
    with pytest.raises(ImageFetchError, match=r"nothing came for 0\.2 s"):
        store.add(f"{server.url}/stalled/disk.img")
    assert leftovers(store) == []


def self_signed(folder):
    """A TLS context with a certificate that no authority vouches for, and the certificate's file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    formats = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    (folder / "server.pem").write_bytes(pem + key.private_bytes(serialization.Encoding.PEM, *formats))
    (folder / "authority.pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context, folder / "authority.pem"


def test_certificates_are_checked(store, tmp_path, monkeypatch):
    """A certificate that is not trusted ends the download, unless the user says that it is."""
    context, authority = self_signed(tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    end = serve(server)
    try:
        url = f"https://127.0.0.1:{server.server_port}/good/disk.img"
        with pytest.raises(ImageFetchError, match="certificate is not trusted: self-signed") as caught:
            store.add(url)
        assert "REQUESTS_CA_BUNDLE" in caught.value.hint
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
        assert store.add(url).disk.read_bytes() == DISK
    finally:
        end()


def test_what_is_no_disk(server, store):
    """A login page instead of a disk is refused by what it is, under the URL."""
    with pytest.raises(ImageInvalidError, match=r"/page/disk\.img .*an HTML page"):
        store.add(f"{server.url}/page/disk.img")
    assert leftovers(store) == []


def test_compressed_images_are_refused_unasked(server, store):
    """What cannot be used is not even downloaded."""
    with pytest.raises(ImageInvalidError, match="not supported"):
        store.add(f"{server.url}/good/debian-6.0.2.1-64bit-v0.3.vdi.gz")
    assert server.asked == []


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_digests(server, store, algorithm):
    """The digest is checked on the bytes that came; one that differs is told with both."""
    right = hashlib.new(algorithm, DISK).hexdigest()
    wrong = right[::-1]
    url = f"{server.url}/good/disk.img"
    with pytest.raises(ImageFetchError, match=f"{algorithm} is {right}, not {wrong}"):
        store.add(url, **{algorithm: wrong})
    assert leftovers(store) == []
    assert store.add(url, **{algorithm: right}).disk.read_bytes() == DISK


def test_credentials_are_used_but_never_shown(server, store, steps):
    """User, password and query of a URL reach the server, and neither messages nor the store."""
    secret_url = server.url.replace("http://", "http://me:hush@") + "/{}/disk.img?token=hush"
    with pytest.raises(ImageFetchError) as caught:
        store.add(secret_url.format("missing"))
    model = store.add(secret_url.format("secret"))
    with pytest.raises(ImageExistsError) as exists:
        store.add(secret_url.format("good"))
    kept = (model.disk.parent / "model.toml").read_text()
    closed_url = secret_url.format("good").replace("disk", "other").replace(str(server.server_port), "1")
    with pytest.raises(ImageFetchError) as refused:
        store.add(closed_url)
    traces = [traceback.format_exception(one.value) for one in (caught, exists, refused)]
    assert "hush" not in str((traces, steps, kept))
    path, authorization = server.asked[-1]
    assert path == "/secret/disk.img?token=hush"
    assert authorization.startswith("Basic ")


def test_resolve_downloads_once(server, store):
    """A URL is downloaded when it is first asked for; then its model is there, without asking the server."""
    url = f"{server.url}/good/disk.img"
    assert store.resolve(url) == store.resolve(url) == store.get("disk")
    assert len(server.asked) == 1


def test_resolve_keeps_urls_apart(server, store):
    """Another URL with the same file name, or another query, never gets the first one's model."""
    urls = [f"{server.url}/{tail}" for tail in ("good/disk.img", "moved/disk.img", "good/disk.img?id=2")]
    names = [store.resolve(url).name for url in urls]
    assert len(set(names)) == 3
    assert names[0] == "disk"
    assert [store.resolve(url).name for url in urls] == names


def downloader(home, url, *more):
    """A process that adds a URL and prints the name of the model."""
    code = (
        "import sys; from pathlib import Path; from pytest_vmfest.images.store import ImageStore; "
        "tell = lambda step: print(step.text, flush=True); "
        "print(ImageStore(Path(sys.argv[1]), None, tell).resolve(sys.argv[2]).name)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(pytest_vmfest.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(home), url, *more],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_many_processes_one_download(server, store):
    """Of many processes that need one URL, one downloads it and all have it."""
    url = f"{server.url}/stalled/disk.img"
    processes = [downloader(store.home, url) for _ in range(3)]
    try:
        waiting = []
        for process in processes:
            first = process.stdout.readline().strip()
            waiting.append(first)
        assert sorted(waiting) == ["downloading", *["waiting for another process that installs it"] * 2]
        server.go_on.set()
        assert [process.communicate(timeout=30)[0].split()[-1] for process in processes] == ["disk"] * 3
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert len(server.asked) == 1
    assert store.get("disk").disk.read_bytes() == DISK


def test_killed_during_the_download(server, store):
    """After kill -9 the store is as before, and the next one downloads it anew."""
    with downloader(store.home, f"{server.url}/stalled/disk.img") as process:
        assert process.stdout.readline().strip() == "downloading"
        assert store.names() == []
        process.kill()
    assert store.names() == []
    assert len(leftovers(store)) == 1
    server.go_on.set()
    assert store.resolve(f"{server.url}/stalled/disk.img").disk.read_bytes() == DISK
    assert leftovers(store) == ["disk"]
    wait_for(lambda: len(server.asked) == 2, Deadline(5), what="the second request")
