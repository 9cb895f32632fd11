"""Writes spiffe.json: cases for verifiers of X.509-SVIDs, in the format of x509-limbo.

Usage: generate.py FILE          the same program writes the same bytes (with the versions of tests/requirements.txt)
"""

import json
import sys

import authorities
import leaves
import names
import paths
from pki import CASES

for part in (names, leaves, authorities, paths):
    part.cases()
with open(sys.argv[1], "w", encoding="ascii") as file:
    # A case a line, so that a change shows which cases it touches.
    lines = ",\n".join(json.dumps(one, separators=(",", ":")) for one in CASES)
    file.write(f'{{"version":1,"testcases":[\n{lines}\n]}}\n')
