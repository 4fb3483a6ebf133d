"""TLS with a certificate that is verified, and proxies that the environment names."""

from __future__ import annotations

import datetime
import ipaddress
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from leoclr.datasets.errors import DataError
from leoclr.datasets.storage import connections
from leoclr.datasets.storage.http import HttpStorage
from leoclr.datasets.storage.retries import Patience

QUICK = Patience(attempts=2, first_wait=0.01, longest_wait=0.02, silence=2, request=4)
CONTENT = bytes(range(256)) * 400
Serve = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "x.tar").write_bytes(CONTENT)
    return tmp_path / "served"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    connections._tls.cache_clear()
    yield
    connections._tls.cache_clear()


def certificate(path: Path) -> Path:
    """A certificate for 127.0.0.1 signed by itself, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "leoclr test")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + encoded)
    return path


def read(url: str) -> bytes:
    return HttpStorage(f"{url}/x.tar", patience=QUICK).read(1000, 70_000)


def log(url: str) -> list[dict[str, str]]:
    with build_opener(ProxyHandler({})).open(f"{url}/log") as response:  # asks no proxy
        return list(json.load(response))


def test_a_certificate_is_verified(folder: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = certificate(tmp_path / "server.pem")
    url = serve(folder, pem)
    with pytest.raises(DataError, match="x.tar: the server's certificate does not hold"):
        read(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    connections._tls.cache_clear()
    assert read(url) == CONTENT[1000:71_000]
    with pytest.raises(DataError, match="certificate does not hold"):
        read(url.replace("127.0.0.1", "localhost"))  # another name than the certificate's


def test_http_goes_through_the_proxy_that_is_named(folder: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = serve(folder)
    monkeypatch.setenv("http_proxy", proxy.replace("http://", "http://ann:s%20ecret@"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert read("http://shards.example.org") == CONTENT[1000:71_000]
    (entry,) = log(proxy)
    assert (entry["host"], entry["path"]) == ("shards.example.org", "/x.tar")
    assert entry["proxy_auth"] == "Basic YW5uOnMgZWNyZXQ=" and entry["auth"] is None


def test_https_goes_through_a_tunnel_that_sees_no_credential(
    folder: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = certificate(tmp_path / "server.pem")
    url, proxy = serve(folder, pem), serve(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    monkeypatch.setenv("LEOCLR_HTTP_AUTH", f"{url}=Bearer hunter2")
    monkeypatch.setenv("https_proxy", proxy)
    assert read(url) == CONTENT[1000:71_000]
    assert log(proxy) == [{"path": urlsplit(url).netloc, "auth": None}]


def test_no_proxy_is_asked_for_a_server_that_is_left_out(
    folder: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve(folder)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert read(url) == CONTENT[1000:71_000]


@pytest.mark.parametrize("address", ["socks5://127.0.0.1:1", "http://ann:hunter2@127.0.0.1:many"])
def test_a_proxy_that_is_none_is_refused_without_its_password(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", address)
    with pytest.raises(DataError, match="HTTP_PROXY: expected http://HOST:PORT") as caught:
        read("http://shards.example.org")
    assert "hunter2" not in str(caught.value)


def test_what_a_deadline_cuts_off_is_read_again_and_never_as_ciphertext(
    folder: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = certificate(tmp_path / "server.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    connections._tls.cache_clear()
    content = np.random.default_rng(0).bytes(1 << 26)
    (folder / "long.tar").write_bytes(content)
    began = time.monotonic()
    patient = Patience(attempts=20, first_wait=0.0, longest_wait=0.0, silence=30, request=60)
    assert HttpStorage(f"{serve(folder, pem)}/long.tar", patience=patient).read(0, len(content)) == content
    some = (time.monotonic() - began) / 3  # of the time that all of it takes: enough for a part of it
    hasty = Patience(attempts=400, first_wait=0.0, longest_wait=0.0, silence=4, request=some)
    for _ in range(3):
        assert HttpStorage(f"{serve(folder, pem)}/long.tar", patience=hasty).read(0, len(content)) == content
