"""PyPI cryptography's verifier, asked about each case of a suite in x509-limbo's format.

Usage: x509_judge.py SUITE       writes a line a case: `accepts ID`, `rejects ID: why` or `skips ID: why`
"""

import datetime
import json
import sys

from cryptography.x509 import load_pem_x509_certificate
from cryptography.x509.verification import PolicyBuilder, Store


def judge(case):
    load = lambda pem: load_pem_x509_certificate(pem.encode())
    roots = [load(pem) for pem in case["trusted_certs"]]
    between = [load(pem) for pem in case["untrusted_intermediates"]]
    time = datetime.datetime.fromisoformat(case["validation_time"])
    policy = PolicyBuilder().store(Store(roots)).time(time.astimezone(datetime.timezone.utc).replace(tzinfo=None))
    policy.build_client_verifier().verify(load(case["peer_certificate"]), between)


with open(sys.argv[1], encoding="ascii") as file:
    suite = json.load(file)
for case in suite["testcases"]:
    if case["validation_kind"] != "CLIENT":
        # It verifies a server only for a DNS name or an address, and an SVID has neither.
        print(f"skips {case['id']}: no server without a DNS name")
        continue
    try:
        judge(case)
        print(f"accepts {case['id']}")
    except Exception as error:  # whatever it says of hostile bytes is a refusal
        print(f"rejects {case['id']}: {' '.join(str(error).split())[:200]}")
