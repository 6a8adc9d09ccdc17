"""`rediss:`: a real server with a certificate of its own, and what is refused."""

from __future__ import annotations

import contextlib
import shutil
import ssl
import subprocess
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.tls import TLSStream
from attrs import define, frozen

from atomic_actors import Actor, ActorSystem, Command, Config, InvalidConfig, Query, StoreUnavailable, handler
from atomic_actors.base._records import partition_of
from atomic_actors.journal.redis._direct_connection import connect_stream
from atomic_actors.journal.redis.cluster._slots import slot_of
from tests.cluster_servers import start_cluster
from tests.servers import KINDS, Kind, Server, free_port, start_server
from tests.system.support import until

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

#: What a server says that was built without TLS.
WITHOUT_TLS = ("Failed finding TLS support", "Bad directive or wrong number of arguments")
#: Longer than a busy machine keeps a renewal waiting.
LEASE_TTL_S = 30.0


@frozen
class Add(Command[int]):
    amount: int


@define
class Sum:
    total: int = 0


@frozen
class GetToken(Query[int]):
    """The fencing token: it grows when the partition is claimed again."""


class Adder(Actor[Sum], kind="adder"):
    @handler(transactional=True)
    async def add(self, message: Add) -> int:
        self.state.total += message.amount
        return self.state.total

    @handler
    async def get_token(self, message: GetToken) -> int:
        return self.context.fencing_token


ADDER = Adder.ref("one")


@frozen
class Certificates:
    """An authority, and a certificate for 127.0.0.1 (not for localhost) that it signed."""

    authority: Path
    certificate: Path
    key: Path


@frozen
class TlsServer:
    server: Server
    port: int

    def url(self, host: str = "127.0.0.1", **options: object) -> str:
        words = "&".join(f"{name}={value}" for name, value in options.items())
        return f"rediss://{host}:{self.port}/0" + (f"?{words}" if words else "")

    def clients(self) -> list[dict[str, str]]:
        """Who is connected, with the words of `CLIENT LIST`."""
        with self.server.client() as client:
            return cast("list[dict[str, str]]", client.client_list())


def openssl(*words: object, directory: Path) -> None:
    subprocess.run(["openssl", *map(str, words)], cwd=directory, check=True, capture_output=True)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not on PATH: it makes the certificates")
    directory = tmp_path_factory.mktemp("certificates")
    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        *(*new, "-x509", "-days", 2, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem"),
        directory=directory,
    )
    openssl(
        *(*new, "-subj", "/CN=store", "-keyout", "store.key", "-out", "store.csr"),
        directory=directory,
    )
    (directory / "extensions").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(
        *("x509", "-req", "-in", "store.csr", "-days", 2, "-CA", "ca.pem", "-CAkey", "ca.key"),
        *("-CAcreateserial", "-extfile", "extensions", "-out", "store.pem"),
        directory=directory,
    )
    return Certificates(directory / "ca.pem", directory / "store.pem", directory / "store.key")


@contextmanager
def tls_server(
    kind: Kind, directory: Path, certificates: Certificates, ask_clients: str
) -> Generator[TlsServer]:
    port = free_port()
    extra = (
        *("--tls-port", str(port), "--tls-auth-clients", ask_clients),
        *("--tls-cert-file", str(certificates.certificate), "--tls-key-file", str(certificates.key)),
        *("--tls-ca-cert-file", str(certificates.authority)),
    )
    try:
        # Its other port is for the test itself: whether it is up, and its settings.
        running = start_server(kind, tmp_path=directory, tcp=True, appendonly="always", extra=extra)
        server = running.__enter__()
    except AssertionError as error:
        if any(text in str(error) for text in WITHOUT_TLS):
            pytest.skip(f"this {kind} server was built without TLS")
        raise
    try:
        yield TlsServer(server, port)
    finally:
        running.__exit__(None, None, None)


@pytest.fixture(scope="session", params=KINDS)
def store(
    request: pytest.FixtureRequest, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Generator[TlsServer]:
    with tls_server(request.param, tmp_path_factory.mktemp("tls"), certificates, "no") as server:
        yield server


def new_system(url: str, namespace: str, **settings: Any) -> ActorSystem:
    return ActorSystem(
        Config(
            url=url, namespace=namespace, actors=[Adder], partitions=2, lease_ttl_s=LEASE_TTL_S, **settings
        )
    )


async def until_renewed(server: Server, namespace: str) -> None:
    """Return once the lease on the partition of `ADDER` was renewed twice more."""
    lease = f"{{{namespace}:default:{partition_of(str(ADDER), 2)}}}:L"

    def renewals() -> int:
        return int(server.call("HGET", lease, "r"))

    enough = renewals() + 2

    async def is_renewed() -> bool:
        return await anyio.to_thread.run_sync(renewals) >= enough

    await until(is_renewed, 20)


async def refuse(url: str, namespace: str, match: str, expected: type[Exception] = StoreUnavailable) -> None:
    with pytest.raises(expected, match=match):
        async with new_system(url, namespace):
            raise AssertionError("entered")


async def test_everything_goes_over_tls(store: TlsServer, certificates: Certificates, namespace: str) -> None:
    """The journal, the lease keeper's client, doorbells and replies: each has a connection of its own."""
    url = store.url(ssl_ca_certs=certificates.authority)
    async with new_system(url, namespace) as owner:
        assert await owner.ask(ADDER, Add(1)) == 1
        token = await owner.ask(ADDER, GetToken())
        await until_renewed(store.server, namespace)
        async with ActorSystem(Config(url=url, namespace=namespace, partitions=2)) as sender:
            assert await sender.ask(ADDER, Add(2)) == 3
            clients: list[dict[str, str]] = await anyio.to_thread.run_sync(store.clients)
        assert await owner.ask(ADDER, Add(4)) == 7
        assert await owner.ask(ADDER, GetToken()) == token
    ports = Counter(client["laddr"].rpartition(":")[2] for client in clients)
    # The one that asked this is the test's own.
    assert ports.pop(str(store.server.port)) == 1
    assert set(ports) == {str(store.port)}
    assert ports[str(store.port)] >= 5


async def test_a_certificate_that_nobody_vouches_for(store: TlsServer, namespace: str) -> None:
    before = store.server.log.count("Error accepting a client connection")
    await refuse(store.url(), namespace, "CERTIFICATE_VERIFY_FAILED|certificate verify failed")
    # Told at once, without another try.
    assert store.server.log.count("Error accepting a client connection") - before <= 1
    async with new_system(store.url(ssl_cert_reqs="none"), namespace) as system:
        assert await system.ask(ADDER, Add(1)) == 1


async def test_a_certificate_for_another_host(
    store: TlsServer, certificates: Certificates, namespace: str
) -> None:
    authority = certificates.authority
    await refuse(
        store.url("localhost", ssl_ca_certs=authority),
        namespace,
        "not valid for 'localhost'|ostname mismatch",
    )
    url = store.url("localhost", ssl_ca_certs=authority, ssl_check_hostname="false")
    async with new_system(url, namespace) as system:
        assert await system.ask(ADDER, Add(1)) == 1


async def test_who_leaves_waits_for_no_goodbye(certificates: Certificates) -> None:
    """A server that is busy, or gone, must not keep sockets open behind whoever has left."""
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    theirs.load_cert_chain(certificates.certificate, certificates.key)
    ours = ssl.create_default_context(cafile=certificates.authority)
    closed = anyio.Event()

    async def serve(raw: SocketStream) -> None:
        async with raw:
            await TLSStream.wrap(raw, server_side=True, ssl_context=theirs)
            # Reads what comes, and answers nothing.
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    await raw.receive()
            closed.set()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as task_group:
        task_group.start_soon(listener.serve, serve)
        stream = await connect_stream("127.0.0.1", listener.extra(SocketAttribute.local_port), ours)
        await stream.aclose()
        with anyio.fail_after(10):  # asyncio would wait for half a minute
            await closed.wait()
        task_group.cancel_scope.cancel()


async def test_the_wrong_port(store: TlsServer, certificates: Certificates, namespace: str) -> None:
    plain = TlsServer(store.server, store.server.port)
    await refuse(
        plain.url(ssl_ca_certs=certificates.authority), namespace, "no connection to the store|in time"
    )
    await refuse(f"redis://127.0.0.1:{store.port}", namespace, "no connection to the store|in time")


async def test_files_that_are_not_there(
    store: TlsServer, certificates: Certificates, namespace: str, tmp_path: Path
) -> None:
    for options in (
        {"ssl_ca_certs": tmp_path / "none"},
        {"ssl_ca_certs": certificates.authority, "ssl_certfile": tmp_path / "none"},
    ):
        await refuse(store.url(**options), namespace, "^url: the certificates of rediss://", InvalidConfig)
    await refuse(store.url(ssl_cert_reqs="maybe"), namespace, "none, optional or required", InvalidConfig)


@pytest.mark.parametrize("kind", KINDS)
async def test_clients_with_certificates(
    kind: Kind, certificates: Certificates, namespace: str, tmp_path: Path
) -> None:
    with tls_server(kind, tmp_path, certificates, "yes") as store:
        await refuse(store.url(ssl_ca_certs=certificates.authority), namespace, "store")
        url = store.url(
            ssl_ca_certs=certificates.authority,
            ssl_certfile=certificates.certificate,
            ssl_keyfile=certificates.key,
        )
        async with new_system(url, namespace) as system:
            assert await system.ask(ADDER, Add(1)) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cluster(kind: Kind, certificates: Certificates, tmp_path: Path, namespace: str) -> None:
    files = (
        *("--tls-cert-file", str(certificates.certificate), "--tls-key-file", str(certificates.key)),
        *("--tls-ca-cert-file", str(certificates.authority), "--tls-auth-clients", "no"),
    )
    try:
        running = start_cluster(kind, tmp_path=tmp_path, appendonly="always", tls=files)
        cluster = running.__enter__()
    except AssertionError as error:
        if any(text in str(error) for text in WITHOUT_TLS):
            pytest.skip(f"this {kind} server was built without TLS")
        raise
    try:
        url = f"{cluster.url}?ssl_ca_certs={certificates.authority}"
        async with new_system(url, namespace) as system:
            token = await system.ask(ADDER, GetToken())
            for number in range(8):
                assert await system.ask(Adder.ref(str(number)), Add(2)) == 2
            lease = f"{{{namespace}:default:{partition_of(str(ADDER), 2)}}}:L"
            await until_renewed(cluster.primary_of(slot_of(lease.encode())), namespace)
            assert await system.ask(ADDER, GetToken()) == token
        with pytest.raises(StoreUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            async with new_system(f"{cluster.url}?ssl_cert_reqs=required", namespace):
                pass
    finally:
        running.__exit__(None, None, None)
