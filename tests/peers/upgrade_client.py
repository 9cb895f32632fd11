"""Asks for an upgrade with Python's own http.client, as docker-py does. Usage: upgrade_client.py ADDRESS PORT URL CASE...

A case is METHOD,PATH,UPGRADE or METHOD,PATH,UPGRADE,BODY. Writes a line of JSON each.
"""
import hashlib
import http.client
import json
import socket
import sys

address, port, url, *cases = sys.argv[1:]
BLOB = hashlib.shake_256(b"postern").digest(1 << 20)


def call(method, path, upgrade, body=None):
    connection = http.client.HTTPConnection(address, int(port), timeout=30)
    headers = {"Connection": "Upgrade", "Upgrade": upgrade, "Postern-Method": "GET"}
    connection.request(method, url + path, body=body, headers=headers)
    own = connection.sock
    response = connection.getresponse()
    result = {"case": f"{method},{path},{upgrade}", "status": response.status, "fields": {}}
    for name, value in response.getheaders():
        result["fields"][name.lower()] = value
    if response.status != 101:
        result["body"] = response.read().decode()
        return result
    # What the server said together with its head waits in the response's buffer.
    stream = response.fp or own.makefile("rb")
    result["hello"] = json.loads(stream.readline())
    own.sendall(BLOB)
    own.shutdown(socket.SHUT_WR)
    rest = stream.read()
    result["same"] = rest == BLOB + b"goodbye"
    return result


for case in cases:
    print(json.dumps(call(*case.split(","))), flush=True)
