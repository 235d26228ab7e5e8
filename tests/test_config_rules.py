"""What a scan needs, what this version cannot do, and what is most likely not meant."""

import pytest

from nray.config.errors import ConfigError
from nray.config.reader import loads
from nray.config.rules import require_work, unsupported, warnings

WORK = "targetgenerator.standard.targets: [192.0.2.1]\nevents.terminal:\n"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("", "targetgenerator.standard.targets"),
        ("targetgenerator.standard.targets: ['']", "targetgenerator.standard.targets"),
        ("targetgenerator.standard.enabled: false", "targetgenerator.standard.enabled"),
        (
            "targetgenerator.standard: {targets: [192.0.2.1], tcpports: [], udpports: []}",
            "targetgenerator.standard.tcpports",
        ),
        (
            "targetgenerator: {standard: {tcpports: [22]}, certificatetransparency:"
            " {enabled: true, tcpports: [], udpports: []}}",
            "targetgenerator.standard.tcpports",
        ),
    ],
)
def test_no_work_is_refused_with_the_key_to_set(text: str, key: str) -> None:
    config = loads(text)
    with pytest.raises(ConfigError) as refused:
        require_work(config, "conf.yaml")
    assert str(refused.value).startswith(f"conf.yaml: {key}: ")
    assert refused.value.hint


@pytest.mark.parametrize(
    "text",
    [
        WORK,
        "targetgenerator.standard.targetFile: targets.txt",
        "targetgenerator.standard: {targets: [192.0.2.1], udpports: []}",
        "targetgenerator.certificatetransparency.enabled: true",
        "targetgenerator: {standard.enabled: false, ldap: {enabled: true, ldapServer: d}}",
    ],
)
def test_work_is_enough(text: str) -> None:
    require_work(loads(text))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (
            "targetgenerator.certificatetransparency.enabled: true",
            "targetgenerator.certificatetransparency.enabled",
        ),
        (
            "targetgenerator.ldap: {enabled: true, ldapServer: d}",
            "targetgenerator.ldap.enabled",
        ),
        ("scannerconfig.zgrab2.enabledModules: [ssh]", "scannerconfig.zgrab2.enabledModules"),
        ("events.elasticsearch: {enabled: true, server: e}", "events.elasticsearch.enabled"),
    ],
)
def test_what_is_not_in_this_version_is_named(text: str, key: str) -> None:
    (asked,) = unsupported(loads(text))
    assert asked.startswith(f"{key}: ")
    assert asked in warnings(loads(text))


@pytest.mark.parametrize(
    "text", ["", WORK, "events.elasticsearch: {server: e}", "scannerconfig.zgrab2: {ssh: {}}"]
)
def test_what_is_switched_off_is_no_matter(text: str) -> None:
    assert unsupported(loads(text)) == []


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("events.terminal:", "nothing to scan"),
        ("targetgenerator.standard.targets: [192.0.2.1]", "no output"),
        (WORK + "events.terminal.enabled: false", "no output"),
        (WORK + "host: 0.0.0.0", "anyone"),
        (WORK + "host: '::'", "anyone"),
        (WORK + "host: example", "anyone"),
        (WORK + "TLS.forceClientAuth: true", "no effect"),
        (WORK + "targetgenerator.ldap.ldapPass: '********'", "mask"),
    ],
)
def test_what_is_likely_not_meant_is_a_warning(text: str, word: str) -> None:
    (warning,) = warnings(loads(text))
    assert word in warning


@pytest.mark.parametrize(
    "text",
    [
        WORK,
        WORK + "host: '::1'",
        WORK + "host: localhost",
        WORK + "host: 0.0.0.0\nTLS: {enabled: true, cert: c, key: k}",
    ],
)
def test_what_is_right_is_passed_over_in_silence(text: str) -> None:
    assert warnings(loads(text)) == []
