"""Scans TLS ports with sslyze, and prints what it found, as JSON: for each port the protocol versions, suites and groups that
it takes, and what it is vulnerable to. A scan that could not be made says why.

Usage: tls_scan.py ADDRESS:PORT[,CHAIN,KEY]...

A port that was scanned with a certificate has a comma behind its name."""

import json
import sys
from pathlib import Path

from sslyze import (
    ClientAuthenticationCredentials,
    ScanCommand,
    ScanCommandAttemptStatusEnum,
    Scanner,
    ServerNetworkConfiguration,
    ServerNetworkLocation,
    ServerScanRequest,
    ServerScanStatusEnum,
)

VERSIONS = {
    "ssl2": ScanCommand.SSL_2_0_CIPHER_SUITES,
    "ssl3": ScanCommand.SSL_3_0_CIPHER_SUITES,
    "tls1.0": ScanCommand.TLS_1_0_CIPHER_SUITES,
    "tls1.1": ScanCommand.TLS_1_1_CIPHER_SUITES,
    "tls1.2": ScanCommand.TLS_1_2_CIPHER_SUITES,
    "tls1.3": ScanCommand.TLS_1_3_CIPHER_SUITES,
}
OTHERS = {
    "groups": (ScanCommand.ELLIPTIC_CURVES, lambda found: sorted(curve.name for curve in found.supported_curves or [])),
    "compression": (ScanCommand.TLS_COMPRESSION, lambda found: found.supports_compression),
    "earlyData": (ScanCommand.TLS_1_3_EARLY_DATA, lambda found: found.supports_early_data),
    "ccsInjection": (ScanCommand.OPENSSL_CCS_INJECTION, lambda found: found.is_vulnerable_to_ccs_injection),
    "heartbleed": (ScanCommand.HEARTBLEED, lambda found: found.is_vulnerable_to_heartbleed),
    "robot": (ScanCommand.ROBOT, lambda found: found.robot_result.value),
    "renegotiation": (
        ScanCommand.SESSION_RENEGOTIATION,
        lambda found: found.is_vulnerable_to_client_renegotiation_dos,
    ),
    "resumption": (
        ScanCommand.SESSION_RESUMPTION,
        lambda found: found.session_id_resumption_result.value,
    ),
}


def request(target: str) -> ServerScanRequest:
    place, *papers = target.split(",")
    address, port = place.rsplit(":", 1)
    client = None
    if papers:
        client = ClientAuthenticationCredentials(certificate_chain_path=Path(papers[0]), key_path=Path(papers[1]))
    return ServerScanRequest(
        server_location=ServerNetworkLocation(hostname=address, port=int(port), ip_address=address),
        network_configuration=ServerNetworkConfiguration(
            tls_server_name_indication="scanned.invalid", tls_client_auth_credentials=client
        ),
        scan_commands={*VERSIONS.values(), *(command for command, _ in OTHERS.values())},
    )


def told(attempt, read):
    if attempt.status == ScanCommandAttemptStatusEnum.COMPLETED:
        return read(attempt.result)
    return {"failed": str(attempt.error_reason), "trace": "".join(attempt.error_trace.format())[-600:] if attempt.error_trace else ""}


def page(result):
    if result.scan_status != ServerScanStatusEnum.COMPLETED:
        return {"unreachable": str(result.connectivity_error_trace)}
    found = result.scan_result
    suites = lambda one: sorted(suite.cipher_suite.name for suite in one.accepted_cipher_suites)
    versions = {name: told(getattr(found, command.value), suites) for name, command in VERSIONS.items()}
    others = {name: told(getattr(found, command.value), read) for name, (command, read) in OTHERS.items()}
    return {"versions": versions, **others}


scanner = Scanner()
targets = sys.argv[1:]
scanner.queue_scans([request(target) for target in targets])
pages = {}
for result in scanner.get_results():
    location = result.server_location
    proven = result.network_configuration.tls_client_auth_credentials is not None
    pages[f"{location.ip_address}:{location.port}{',' if proven else ''}"] = page(result)
json.dump(pages, sys.stdout, indent=1)
