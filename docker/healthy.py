#!/opt/venv/bin/python -IS
"""Exits 0 if every address in HEALTH_URLS (separated by spaces) answers; whoever does not is named."""

import os
import sys
import urllib.request
from pathlib import Path

headers = {}
if token := os.environ.get("RAY_AUTH_TOKEN_PATH"):
    headers["Authorization"] = f"Bearer {Path(token).read_text().strip()}"
for url in os.environ.get("HEALTH_URLS", "").split():
    try:
        urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=4).close()
    except OSError as error:
        sys.exit(f"{url}: {error}")
