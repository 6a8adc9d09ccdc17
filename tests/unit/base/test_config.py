from __future__ import annotations

import contextlib
import pickle
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomic_actors.base._config import Config, KindConfig, KindSettings, environment_variable, settings_for
from atomic_actors.base._errors import InvalidConfig
from atomic_actors.base._store_url import StoreLocation, StoreScheme, parse_store_url, url_for_display

FORMS = (
    "embedded:, embedded:some/dir, embedded:///abs/dir, memory:, redis://host:6379/0, rediss://host:6379/0, "
    "unix:///path/to.sock, redis+sentinel://host:26379/service-name, redis+cluster://host:6379"
)


def refused(**settings: Any) -> str:
    with pytest.raises(InvalidConfig) as caught:
        Config(**settings)
    return str(caught.value)


# Defaults and types.


def test_defaults_stand() -> None:
    config = Config()
    assert config.location == StoreLocation(scheme=StoreScheme.EMBEDDED)
    assert (config.partitions, config.lease_ttl_s, config.max_attempts) == (64, 2.0, 1)
    assert config.kinds == {}
    assert config.actors == ()


def test_every_setting_has_a_paragraph() -> None:
    for attribute in (*attrs.fields(Config), *attrs.fields(KindConfig)):
        assert attribute.metadata["doc"].endswith("."), attribute.name


def test_an_int_becomes_a_float_and_actors_a_tuple() -> None:
    config = Config(ask_timeout_s=3, actors=[int])
    assert type(config.ask_timeout_s) is float
    assert config.actors == (int,)


def test_frozen_hashable_and_picklable() -> None:
    config = Config(kinds={"account": KindConfig(max_attempts=3)}, actors=[[]])
    assert isinstance(hash(config), int)
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.partitions = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.kinds["other"] = KindConfig()  # type: ignore[index]
    assert attrs.evolve(config, partitions=8).partitions == 8


def test_kinds_are_copied() -> None:
    kinds = {"account": KindConfig(max_attempts=3)}
    config = Config(kinds=kinds)
    kinds.clear()
    assert config.kinds["account"].max_attempts == 3


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"idle_timeout_s": "5"},
            "idle_timeout_s: expected a number of seconds of at least 0 (0 means never), got str '5'",
        ),
        (
            {"idle_timeout_s": True},
            "idle_timeout_s: expected a number of seconds of at least 0 (0 means never), got bool True",
        ),
        ({"lease_ttl_s": float("nan")}, "lease_ttl_s: expected a number of seconds above 0, got float nan"),
        ({"lease_ttl_s": float("inf")}, "lease_ttl_s: expected a number of seconds above 0, got float inf"),
        ({"lease_ttl_s": 0}, "lease_ttl_s: expected a number of seconds above 0, got int 0"),
        ({"max_depth": 1.0}, "max_depth: expected a whole number of messages of at least 0 (0 means unbounded), got float 1.0"),
        ({"max_depth": True}, "max_depth: expected a whole number of messages of at least 0 (0 means unbounded), got bool True"),
        ({"max_depth": -1}, "max_depth: expected a whole number of messages of at least 0 (0 means unbounded), got int -1"),
        ({"max_batch_steps": 0}, "max_batch_steps: expected a whole number of steps of at least 1, got int 0"),
        ({"partitions": 16385}, "partitions: expected a whole number of partitions of at least 1 and at most 16384, got int 16385"),
        ({"backoff_jitter": 1.5}, "backoff_jitter: expected a number of at least 0 and at most 1, got float 1.5"),
        ({"backoff": "linear"}, "backoff: expected one of 'exponential', 'fixed', got str 'linear'"),
        ({"on_interrupted": None}, "on_interrupted: expected one of 'dead_letter', 'retry', got NoneType None"),
        ({"handle_signals": 1}, "handle_signals: expected True or False, got int 1"),
        ({"namespace": "a b"}, "namespace: expected 1 to 64 letters, digits, '_', '.' or '-', got str 'a b'"),
        ({"service": ""}, "service: expected 1 to 64 letters, digits, '_', '.' or '-', got str ''"),
        ({"port": 0}, "port: expected a whole number of at least 1 and at most 65535 or None, got int 0"),
        ({"password": 7}, "password: expected a str that is not empty or None, got int"),
        ({"actors": int}, "actors: expected a list, got type <class 'int'>; write actors=[...]"),
        ({"kinds": []}, "kinds: expected a mapping, got list []"),
        ({"kinds": {"a": 1}}, "kinds['a']: expected a KindConfig, got int 1; write kinds={'a': KindConfig(...)}"),
        ({"kinds": {1: KindConfig()}}, "kinds: expected the name of a kind as key, got 1"),
    ],
)  # fmt: skip
def test_a_bad_value_names_field_value_and_remedy(settings: dict[str, Any], text: str) -> None:
    assert refused(**settings) == text


def test_an_unknown_setting_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="lease_tll_s"):
        Config(lease_tll_s=1.0)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"backoff_initial_s": 31},
            "backoff_initial_s: 31 is more than backoff_max_s, which is 30; raise backoff_max_s or lower backoff_initial_s",
        ),
        ({"lease_margin_s": 2}, "lease_margin_s: 2 leaves nothing of lease_ttl_s, which is 2; use about a quarter of it"),
        (
            {"lease_renew_interval_s": 0.75},
            "lease_renew_interval_s: 0.75 leaves no time for a second try within lease_ttl_s - lease_margin_s, "
            "which is 1.5; use less than 0.75",
        ),
        (
            {"loop_stall_limit_s": 2},
            "loop_stall_limit_s: 2 must be less than lease_ttl_s, which is 2; use about half of it",
        ),
        (
            {"store_timeout_s": 2},
            "store_timeout_s: 2 must be less than lease_ttl_s, which is 2, or one slow call costs the lease; "
            "lower store_timeout_s or raise lease_ttl_s",
        ),
        (
            {"accept_timeout_s": 31},
            "accept_timeout_s: 31 is more than half of result_ttl_s, which is 60; the store refuses older message "
            "ids, so raise result_ttl_s",
        ),
        ({"dedupe_ttl_s": 59}, "dedupe_ttl_s: 59 is less than result_ttl_s, which is 60; raise dedupe_ttl_s"),
    ],
)  # fmt: skip
def test_values_that_do_not_go_together(settings: dict[str, Any], text: str) -> None:
    assert refused(**settings) == text


# The environment.


def test_from_env_reads_every_type() -> None:
    config = Config.from_env(
        environ={
            "ATOMIC_ACTORS_LEASE_TTL_S": "3",
            "ATOMIC_ACTORS_PARTITIONS": "8",
            "ATOMIC_ACTORS_HANDLE_SIGNALS": "Yes",
            "ATOMIC_ACTORS_SAME_HOST_TAKEOVER": "off",
            "ATOMIC_ACTORS_ON_DEAD": "park",
            "ATOMIC_ACTORS_URL": "memory:",
            "ATOMIC_ACTORS_NAMESPACE": "",
            "HOME": "/",
        },
        actors=[int],
        partitions=16,
    )
    assert config == Config(
        lease_ttl_s=3, partitions=16, handle_signals=True, same_host_takeover=False, on_dead="park", url="memory:",
        actors=[int],
    )  # fmt: skip


def test_from_env_reads_the_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_MAX_HOPS", "7")
    assert Config.from_env(prefix="OTHER_").max_hops == 7


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        (
            "ATOMIC_ACTORS_LEASE_TTL", "3",
            "ATOMIC_ACTORS_LEASE_TTL: there is no such setting; did you mean ATOMIC_ACTORS_LEASE_TTL_S?",
        ),
        ("ATOMIC_ACTORS_", "3", "ATOMIC_ACTORS_: there is no such setting"),
        ("ATOMIC_ACTORS_PARTITIONS", "8.0", "ATOMIC_ACTORS_PARTITIONS: expected a whole number of partitions of at least 1 and at most 16384, got '8.0'"),
        ("ATOMIC_ACTORS_LEASE_TTL_S", "nan", "ATOMIC_ACTORS_LEASE_TTL_S: expected a number of seconds above 0, got 'nan'"),
        ("ATOMIC_ACTORS_HANDLE_SIGNALS", "maybe", "ATOMIC_ACTORS_HANDLE_SIGNALS: expected one of 1, 0, true, false, yes, no, on, off, got 'maybe'"),
        ("ATOMIC_ACTORS_BACKOFF", "linear", "ATOMIC_ACTORS_BACKOFF: expected one of 'exponential', 'fixed', got 'linear'"),
        ("ATOMIC_ACTORS_KINDS", "{}", "ATOMIC_ACTORS_KINDS: cannot come from the environment; pass it as an argument"),
    ],
)  # fmt: skip
def test_from_env_refuses(variable: str, text: str, expected: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        Config.from_env(environ={variable: text})
    assert str(caught.value) == expected


def test_every_plain_setting_comes_from_its_variable() -> None:
    samples: dict[str, str] = {}
    for attribute in attrs.fields(Config):
        default = attribute.default
        if attribute.name in ("actors", "kinds") or default is None:
            continue
        samples[environment_variable(attribute.name)] = (
            str(default).lower() if default in (True, False) else str(default)
        )
    assert Config.from_env(environ=samples) == Config()


# Per kind.


def test_precedence_of_settings() -> None:
    config = Config(
        max_attempts=2, max_depth=5, kinds={"account": KindConfig(max_attempts=4, backoff="fixed")}
    )
    settings = settings_for(config, "account", KindConfig(max_attempts=3, idle_timeout_s=0))
    assert (settings.max_attempts, settings.idle_timeout_s, settings.max_depth) == (4, 0.0, 5)
    assert settings.backoff == "fixed"
    assert settings_for(config, "other").max_attempts == 2
    assert settings_for(config, "other", KindConfig(max_attempts=0)).max_attempts == 0


def test_kind_settings_have_what_a_kind_can_override() -> None:
    names = [attribute.name for attribute in attrs.fields(KindConfig)]
    assert ["kind", *names] == [attribute.name for attribute in attrs.fields(KindSettings)]
    assert KindConfig() == KindConfig(**dict.fromkeys(names))


def test_a_kind_is_checked_as_a_whole() -> None:
    with pytest.raises(InvalidConfig) as caught:
        settings_for(Config(), "account", KindConfig(backoff_initial_s=60))
    assert str(caught.value) == (
        "kind 'account': backoff_initial_s: 60 is more than backoff_max_s, which is 30; "
        "raise backoff_max_s or lower backoff_initial_s"
    )


def test_a_bad_override_is_refused() -> None:
    with pytest.raises(InvalidConfig) as caught:
        KindConfig(max_attempts=-1)
    assert str(caught.value) == (
        "max_attempts: expected a whole number of attempts of at least 0 (0 means unbounded) or None, got int -1"
    )


# URLs.


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("embedded:", StoreLocation(scheme=StoreScheme.EMBEDDED)),
        ("embedded:some/dir", StoreLocation(scheme=StoreScheme.EMBEDDED, path="some/dir")),
        ("embedded:///abs/dir", StoreLocation(scheme=StoreScheme.EMBEDDED, path="/abs/dir")),
        ("memory:", StoreLocation(scheme=StoreScheme.MEMORY)),
        ("redis://h", StoreLocation(scheme=StoreScheme.REDIS, hosts=(("h", 6379),))),
        (
            "redis://u:p%40@h:1/2",
            StoreLocation(scheme=StoreScheme.REDIS, hosts=(("h", 1),), db=2, username="u", password="p@"),
        ),
        (
            "redis://:p@h?db=2",
            StoreLocation(scheme=StoreScheme.REDIS, hosts=(("h", 6379),), db=2, password="p"),
        ),
        ("redis://[::1]:7/0", StoreLocation(scheme=StoreScheme.REDIS, hosts=(("::1", 7),))),
        (
            "rediss://h/1?ssl_ca_certs=/ca",
            StoreLocation(
                scheme=StoreScheme.REDISS, hosts=(("h", 6379),), db=1, options=(("ssl_ca_certs", "/ca"),)
            ),
        ),
        ("unix:///tmp/a%20b.sock?db=1", StoreLocation(scheme=StoreScheme.UNIX, db=1, path="/tmp/a b.sock")),
        (
            "redis+sentinel://a,b:2/main/3",
            StoreLocation(
                scheme=StoreScheme.SENTINEL, hosts=(("a", 26379), ("b", 2)), db=3, service_name="main"
            ),
        ),
        ("redis+cluster://a:1,b:2", StoreLocation(scheme=StoreScheme.CLUSTER, hosts=(("a", 1), ("b", 2)))),
    ],
)
def test_urls(url: str, location: StoreLocation) -> None:
    assert Config(url=url).location == location
    assert parse_store_url(url)[0] == location


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://h", "'http://h' is not a store URL"),
        ("localhost:6379", "'localhost:6379' is not a store URL"),
        ("redis://", "'redis://' does not name a host"),
        ("redis://h:x", "'redis://h:x' has 'h:x' instead of host:port"),
        ("redis://h:70000", "'redis://h:70000' has 'h:70000' instead of host:port"),
        ("redis://h/x", "'redis://h/x' has 'x' instead of a database number"),
        ("redis://h/1?db=2", "'redis://h/1?db=2' names the database twice"),
        ("redis://h?dbb=2", "'redis://h?dbb=2' has the unknown option 'dbb' (known here: db)"),
        (
            "redis://a,b",
            "'redis://a,b' names several hosts, which only redis+sentinel and redis+cluster take",
        ),
        ("redis://u:se#cret@h", "'redis://u:***@h' has a '#'; write %23 in a password"),
        ("embedded://dir", "'embedded://dir' must not name a host"),
        ("memory:x", "'memory:x' must not have a path"),
        ("unix://", "'unix://' does not name a socket"),
        ("redis+sentinel://h", "'redis+sentinel://h' does not name the service that the sentinels monitor"),
        ("redis+cluster://h/1", "'redis+cluster://h/1' names a database, but a cluster has only database 0"),
    ],
)
def test_bad_urls_name_the_accepted_forms(url: str, why: str) -> None:
    assert refused(url=url) == f"url: {why}; the forms are {FORMS}"


def test_parts_beside_the_url() -> None:
    assert Config(host="h").location == StoreLocation(scheme=StoreScheme.REDIS, hosts=(("h", 6379),))
    assert Config(host="::1", port=7, db=2, username="u", password="p").location == StoreLocation(
        scheme=StoreScheme.REDIS, hosts=(("::1", 7),), db=2, username="u", password="p"
    )
    assert Config(port=7).location.hosts == (("localhost", 7),)
    assert Config(url="rediss://h", port=7, password="p").location == StoreLocation(
        scheme=StoreScheme.REDISS, hosts=(("h", 7),), password="p"
    )
    assert Config(url="unix:///s", db=3).location.db == 3


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"url": "redis://h", "host": "i"},
            "host: 'i' conflicts with url='redis://h'; set the host in one place",
        ),
        (
            {"url": "redis://h:1", "port": 2},
            "port: 2 conflicts with url='redis://h:1'; set the port in one place",
        ),
        ({"url": "redis://h/1", "db": 2}, "db: 2 conflicts with url='redis://h/1'; set the db in one place"),
        (
            {"url": "redis://u:secret@h", "password": "secret"},
            "password: it conflicts with url='redis://u:***@h'; set the password in one place",
        ),
        ({"db": 2}, "db: 2 has no effect with url='embedded:'; give host, or another url"),
        (
            {"url": "memory:", "host": "h"},
            "host: 'h' has no effect with url='memory:'; give host, or another url",
        ),
        (
            {"url": "unix:///s", "port": 1},
            "port: 1 conflicts with url='unix:///s'; set the port in one place",
        ),
        (
            {"url": "redis+cluster://h", "db": 2},
            "db: 2 has no effect with url='redis+cluster://h'; a cluster has only database 0",
        ),
    ],
)
def test_what_conflicts_with_the_url(settings: dict[str, Any], text: str) -> None:
    assert refused(**settings) == text


def test_passwords_are_never_shown() -> None:
    config = Config(url="redis://u:sesame@h:1/2")
    beside = Config(host="h", password="sesame")
    for text in (
        repr(config),
        repr(config.location),
        str(config.location),
        repr(beside),
        repr(beside.location),
    ):
        assert "sesame" not in text
    assert str(config.location) == "redis://u@h:1/2"
    assert config.location.password == beside.location.password == "sesame"


@given(st.text(min_size=1, max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidConfig):
        assert isinstance(parse_store_url(text)[0], StoreLocation)


@given(
    st.text(alphabet="abc:/?@#%,[] ", min_size=1, max_size=30),
    st.sampled_from([s.value for s in StoreScheme]),
)
def test_any_rest_of_a_url_is_parsed_or_refused(rest: str, scheme: str) -> None:
    with contextlib.suppress(InvalidConfig):
        location, _ = parse_store_url(f"{scheme}://{rest}")
        assert location.scheme.value == scheme
        assert all(host and 0 < port < 65536 for host, port in location.hosts)


@given(st.text(alphabet="xyz:@/?%", min_size=4, max_size=12))
def test_a_raw_password_never_leaves_in_a_text(password: str) -> None:
    assert url_for_display(f"redis://u:{password}@h") == "redis://u:***@h"
