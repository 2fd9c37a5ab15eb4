#!/usr/bin/env bash
# Writes FOLDER/sbom.cdx.json: all packages of an image, Debian's and Python's, as CycloneDX 1.5.
# usage: sbom.sh FOLDER      FOLDER: the Python environment
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
folder=$ROOT${1:?sbom.sh FOLDER}
[ -x "$folder/bin/python" ] || die "$folder is no Python environment: run python.sh first"
"$folder/bin/python" - "$folder/sbom.cdx.json" << 'END'
import json, subprocess, sys
from importlib.metadata import distributions

found = {("pypi", d.metadata["Name"].lower().replace("_", "-"), d.version) for d in distributions()}
listed = subprocess.check_output(["dpkg-query", "-W", "-f", "${Package} ${Version}\n"], text=True)
found |= {("deb", *line.split()) for line in listed.splitlines()}
parts = [
    {"type": "library", "name": name, "version": version, "purl": f"pkg:{kind}/{name}@{version}"}
    for kind, name, version in sorted(found)
]
bill = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": parts}
with open(sys.argv[1], "w") as file:
    json.dump(bill, file)
END
