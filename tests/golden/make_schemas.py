"""Makes `schemas.json.gz`: every schema of the official JSON Schema test suite for the drafts 2020-12 and 7,
each once, without its cases.

    pip download --no-deps --no-binary :all: jsonschema==4.26.0
    tar xzf jsonschema-4.26.0.tar.gz
    python make_schemas.py jsonschema-4.26.0/json

The suite is github.com/json-schema-org/JSON-Schema-Test-Suite (MIT); its notice is kept in the file.
"""

import gzip
import json
import pathlib
import sys

suite = pathlib.Path(sys.argv[1])
out = pathlib.Path(__file__).with_name("schemas.json.gz")
seen, schemas = set(), []
for draft in ["draft2020-12", "draft7"]:
    for path in sorted((suite / "tests" / draft).glob("*.json")):
        for group in json.loads(path.read_text()):
            schema = group["schema"]
            plain = {k: v for k, v in schema.items() if k != "$schema"} if isinstance(schema, dict) else schema
            key = json.dumps(plain, sort_keys=True)
            if key in seen:
                continue
            seen.add(key)
            schemas.append({"file": f"{draft}/{path.name}", "about": group["description"], "schema": schema})
value = {"notice": (suite / "LICENSE").read_text(), "schemas": schemas}
with open(out, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=9, mtime=0) as file:
    file.write(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
print(len(schemas), out.stat().st_size)
