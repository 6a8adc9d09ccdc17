"""`rediss:` with redis-py: what the other driver accepts and refuses, in the same words."""

from __future__ import annotations

import pytest

from atomic_actors import InvalidConfig, StoreUnavailable
from atomic_actors.client import Client
from tests.client.till import Add, till
from tests.redis.test_tls import Certificates, TlsServer, certificates, store

__all__ = ("certificates", "store")

pytestmark = [pytest.mark.redis]


def test_what_is_accepted(store: TlsServer, certificates: Certificates, namespace: str) -> None:
    for url in (
        store.url(ssl_ca_certs=certificates.authority),
        store.url("localhost", ssl_ca_certs=certificates.authority, ssl_check_hostname="false"),
        store.url(ssl_cert_reqs="none"),
    ):
        with Client(url, namespace=namespace, allow_no_persistence=True) as client:
            assert client.withdraw(client.tell(till("a"), Add(1)))


def test_what_is_refused(store: TlsServer, certificates: Certificates, namespace: str) -> None:
    for url, why in (
        (store.url(), "certificate verify failed"),
        (store.url("localhost", ssl_ca_certs=certificates.authority), "Hostname mismatch"),
    ):
        with Client(url, namespace=namespace) as client, pytest.raises(StoreUnavailable, match=why):
            client.tell(till("a"), Add(1))


def test_certificates_that_are_not_there(namespace: str) -> None:
    url = "rediss://localhost?ssl_ca_certs=/nowhere/ca.pem"
    with Client(url, namespace=namespace) as client, pytest.raises(InvalidConfig, match="cannot be read"):
        client.tell(till("a"), Add(1))
