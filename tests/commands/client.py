"""Stands for `python` in a documented command: hands arguments and streams to warm.py and exits with its status."""

import array
import json
import os
import socket
import sys


def main() -> int:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ["WARM_PYTHON"])
    request = {
        "arguments": sys.argv[1:],
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "python": os.environ["WARM_CLIENT"],
    }
    content = json.dumps(request).encode()
    streams = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))
    connection.sendmsg([len(content).to_bytes(8, "big")], [streams])
    connection.sendall(content)
    status = connection.recv(1)
    return status[0] if status else 137  # the process was ended


if __name__ == "__main__":
    sys.exit(main())
