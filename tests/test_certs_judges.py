"""What ``nray certs`` makes, before foreign judges: OpenSSL, GnuTLS and Go's crypto/x509.

They accept every certificate for what it is, of P-256 and of RSA, first ones and renewed ones;
and with the list of the revoked they refuse those that are on it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from certs_lab import good

#: What is there after `made`: file of a certificate, and whether it was revoked.
LEAVES = {
    "server": False,  # the renewed one
    "server-old": True,
    "rsa-server": False,
    "node": False,
    "rsa-node": False,
    "lost": True,
}

GO = """package main

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
)

func block(path string) []byte {
	data, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	found, _ := pem.Decode(data)
	return found.Bytes
}

// judge CA CRL LEAF server|node [NAME...]
func main() {
	ca, err := x509.ParseCertificate(block(os.Args[1]))
	if err != nil {
		panic(err)
	}
	crl, err := x509.ParseRevocationList(block(os.Args[2]))
	if err != nil {
		panic(err)
	}
	if err := crl.CheckSignatureFrom(ca); err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(block(os.Args[3]))
	if err != nil {
		panic(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	usage := x509.ExtKeyUsageClientAuth
	if os.Args[4] == "server" {
		usage = x509.ExtKeyUsageServerAuth
	}
	names := os.Args[5:]
	if len(names) == 0 {
		names = []string{""}
	}
	for _, name := range names {
		usages := []x509.ExtKeyUsage{usage}
		options := x509.VerifyOptions{Roots: roots, DNSName: name, KeyUsages: usages}
		if _, err := leaf.Verify(options); err != nil {
			fmt.Println("refused:", err)
			os.Exit(1)
		}
	}
	for _, entry := range crl.RevokedCertificateEntries {
		if entry.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
			fmt.Println("revoked")
			os.Exit(1)
		}
	}
	fmt.Println("good", crl.Number)
}
"""


def _make(directory: Path, *init: str) -> Path:
    before = os.getcwd()
    os.chdir(directory)
    try:
        good("init", *init)
        names = ["scan.example.org", "*.lab.example", "198.18.0.1", "2001:db8::1"]
        good("issue", "server", *names, "--out", "server")
        shutil.copy("server.pem", "server-old.pem")
        good("renew", names[0], "--replace", "--revoke-old")
        good("issue", "server", "rsa.example.org", "--rsa", "2048", "--out", "rsa-server")
        good("issue", "node", "nyc1", "--out", "node")
        good("issue", "node", "vantage point 7", "--rsa", "2048", "--out", "rsa-node")
        good("issue", "node", "lost")
        good("revoke", "lost")
    finally:
        os.chdir(before)
    return directory


@pytest.fixture(scope="module", params=["ec", "rsa"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    init = ["--rsa", "2048"] if request.param == "rsa" else []
    return _make(tmp_path_factory.mktemp(request.param), *init)


def _need(program: str, package: str) -> None:
    if shutil.which(program) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{program} is missing (Debian: {package}); in CI it must be there")
        pytest.skip(f"{program} is not installed (Debian: {package})")


def _run(directory: Path, *command: str, **more: str) -> tuple[int, str]:
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=180,
        env={**os.environ, **more},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def _use(stem: str) -> str:
    return "server" if "server" in stem else "node"


@pytest.mark.parametrize("stem", LEAVES)
def test_openssl(made: Path, stem: str) -> None:
    _need("openssl", "openssl")
    strict = ["openssl", "verify", "-x509_strict", "-check_ss_sig", "-CAfile", "nray-ca/ca.pem"]
    purpose = ["-purpose", "sslserver" if _use(stem) == "server" else "sslclient", f"{stem}.pem"]
    other = ["-purpose", "sslclient" if _use(stem) == "server" else "sslserver", f"{stem}.pem"]
    assert _run(made, *strict, *purpose)[0] == 0
    assert _run(made, *strict, *other)[0] != 0
    status, said = _run(made, *strict, "-crl_check", "-CRLfile", "nray-ca/crl.pem", *purpose)
    assert (status != 0) == LEAVES[stem], said
    assert ("certificate revoked" in said) == LEAVES[stem], said
    if stem == "server":
        for name in ("-verify_hostname scan.example.org", "-verify_hostname a.lab.example",
                     "-verify_ip 198.18.0.1", "-verify_ip 2001:db8::1"):  # fmt: skip
            assert _run(made, *strict, *name.split(), *purpose)[0] == 0
        assert _run(made, *strict, "-verify_hostname", "b.example.org", *purpose)[0] != 0


@pytest.mark.parametrize("stem", LEAVES)
def test_gnutls(made: Path, stem: str) -> None:
    _need("certtool", "gnutls-bin")
    purpose = "1.3.6.1.5.5.7.3.1" if _use(stem) == "server" else "1.3.6.1.5.5.7.3.2"
    verify = ["certtool", "--verify", "--infile", f"{stem}.pem", "--verify-purpose", purpose]
    verify += ["--load-ca-certificate", "nray-ca/ca.pem"]
    status, said = _run(made, *verify)
    assert status == 0, said
    status, said = _run(made, *verify, "--load-crl", "nray-ca/crl.pem")
    assert (status != 0) == LEAVES[stem], said
    assert ("revoked" in said) == LEAVES[stem], said


@pytest.fixture(scope="module")
def go_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge built of Go's standard library. Where there is no Go there is no such test, in CI
    neither: Go is no part of what nray needs."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("go is not installed")
    directory = tmp_path_factory.mktemp("go")
    (directory / "main.go").write_text(GO)
    (directory / "go.mod").write_text("module judge\n\ngo 1.19\n")
    offline = {"GOPROXY": "off", "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
    if "HOME" not in os.environ:
        offline["GOCACHE"] = str(directory / "cache")
    done = subprocess.run(
        [go, "build", "-o", "judge", "."], cwd=directory, capture_output=True, text=True,
        timeout=300, env={**os.environ, **offline},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return directory / "judge"


@pytest.mark.slow
@pytest.mark.parametrize("stem", LEAVES)
def test_go(made: Path, go_judge: Path, stem: str) -> None:
    judge = [str(go_judge), "nray-ca/ca.pem", "nray-ca/crl.pem", f"{stem}.pem"]
    status, said = _run(made, *judge, _use(stem))
    assert status == LEAVES[stem], said
    assert said.startswith("revoked" if LEAVES[stem] else "good"), said
    other = "node" if _use(stem) == "server" else "server"
    assert "incompatible key usage" in _run(made, *judge, other)[1]
    if stem == "server":
        names = ["scan.example.org", "a.lab.example", "198.18.0.1", "2001:db8::1"]
        assert _run(made, *judge, "server", *names)[0] == 0
        assert "refused" in _run(made, *judge, "server", "b.example.org")[1]


def test_a_foreign_authority_is_refused_by_all(
    made: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The judges can say no: to a certificate that this authority did not issue."""
    other = tmp_path_factory.mktemp("other")
    good("init", "--dir", other / "ca")
    ca = str(other / "ca" / "ca.pem")
    if shutil.which("openssl"):
        assert _run(made, "openssl", "verify", "-CAfile", ca, "node.pem")[0] != 0
    if shutil.which("certtool"):
        verify = ["certtool", "--verify", "--infile", "node.pem", "--load-ca-certificate", ca]
        assert _run(made, *verify)[0] != 0
