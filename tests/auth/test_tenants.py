from __future__ import annotations

import hashlib

import pytest

from kvgate.auth.tenants import AccessKeyConfig, TenantConfig, Tenants, tenant_salt
from kvgate.config import Secret, build
from kvgate.errors import ConfigError, UnknownAccessKey

SECRET = Secret("a-secret-of-some-length")


def config(access_key: str = "acme-key", **options: object) -> TenantConfig:
    return TenantConfig((AccessKeyConfig(access_key, SECRET),), **options)  # type: ignore[arg-type]


def test_credential_leads_to_its_tenant() -> None:
    tenants = Tenants({"acme": config(buckets=("kv",), quota=5), "zeta": config("zeta-key")})
    tenant, secret = tenants.credential("acme-key")
    assert (tenant.name, tenant.buckets, tenant.quota_nbytes, tenant.max_buckets) == ("acme", ("kv",), 5, 100)
    assert secret == str(SECRET)
    assert [tenant.name for tenant in tenants] == ["acme", "zeta"]
    assert len(tenants) == 2
    with pytest.raises(UnknownAccessKey):
        tenants.credential("nobody")


def test_configuration_reads_from_yaml_values() -> None:
    values = {
        "access_keys": [{"access_key": "acme-key", "secret_key": "a-secret-of-some-length"}],
        "buckets": ["kv"],
        "quota": "1GiB",
        "salt": "shared",
    }
    read = build(TenantConfig, values)
    assert read == config(buckets=("kv",), quota=1 << 30, salt=Secret("shared"))


def test_salts_differ_by_name_and_agree_by_configuration() -> None:
    tenants = {
        tenant.name: tenant.salt
        for tenant in Tenants(
            {
                "a": config("key-a"),
                "b": config("key-b"),
                "c": config("key-c", salt=Secret("x")),
                "d": config("key-d", salt=Secret("x")),
            }
        )
    }
    assert tenants["a"] != tenants["b"] != tenants["c"] == tenants["d"]
    assert tenants["a"] == tenant_salt("a") == hashlib.sha256(b"kvgate tenant salt v1\0a").digest()


def test_secrets_stay_out_of_reprs_and_errors() -> None:
    tenants = Tenants({"acme": config(salt=Secret("hidden-salt-text"))})
    tenant, _ = tenants.credential("acme-key")
    shown = repr(config(salt=Secret("hidden-salt-text"))) + repr(tenant) + repr(tenants)
    assert SECRET not in shown
    assert "hidden-salt-text" not in shown
    assert repr(tenant.salt) not in shown
    with pytest.raises(ConfigError) as caught:
        AccessKeyConfig("acme-key", Secret("shortsecret"))
    assert "shortsecret" not in str(caught.value)


def test_a_key_belongs_to_one_tenant() -> None:
    with pytest.raises(ConfigError, match="twice"):
        Tenants({"a": config(), "b": config()})


@pytest.mark.parametrize("name", ["", "Acme", "a b", "a/b", "-a", "a" * 64, "ä"])
def test_bad_tenant_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        Tenants({name: config()})


@pytest.mark.parametrize("access_key", ["", "ab", "a/b/c", "a b c", "a,b,c", "k" * 129, "schlüssel"])
def test_bad_access_keys_are_refused(access_key: str) -> None:
    with pytest.raises(ConfigError):
        config(access_key)


@pytest.mark.parametrize("secret", ["", "x" * 15])
def test_short_secrets_are_refused(secret: str) -> None:
    with pytest.raises(ConfigError):
        AccessKeyConfig("acme-key", Secret(secret))


def test_a_tenant_needs_a_key_and_room_for_its_buckets() -> None:
    with pytest.raises(ConfigError):
        TenantConfig(())
    with pytest.raises(ConfigError):
        config(buckets=("a", "b"), max_buckets=1)
