"""What is secret stays inside: no log line, history, answer, metric, file or finding of `doctor` tells it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.engine.processes import ProcessorProcess

APP = """
from agnt5 import FunctionContext, WorkflowContext, function, workflow
from agnt5.types import webhook

@function(retries=1)
async def fails(ctx: FunctionContext) -> None:
    ctx.logger.warning("about to fail")
    raise RuntimeError("as it should")

@workflow(triggers=[webhook("github")])
async def pushed(ctx: WorkflowContext, ref: str) -> str:
    await ctx.step(fails)
    return ref
"""

KEY, OWN, WRONG = "key-Vf3x81qL0Zs2", "key-Bw9Qz7Tn4Lk5", "key-Hx6Rm2Pd8Cy1"
WEBHOOK, KAFKA, TLS = "whsec-Jm5Ta9Ee3Uo7", "sasl-Ni8Gb4Wv6Xr0", "tls-Kd1Fs7Oc2Ip9"
PAYLOAD = base64.b64encode(bytes(range(7, 39))).decode()


def test_no_secret_is_told_by_a_processor_that_has_them_all(tmp_path: Path) -> None:
    module = tmp_path / "app.py"
    module.write_text(APP)
    settings = {
        "api_keys": f"{KEY},{OWN}", "api_key": OWN, "webhook_github_secret": WEBHOOK, "payload_keys": f"one:{PAYLOAD}",
        "kafka_sasl_password": KAFKA, "kafka_ssl_key_password": TLS, "log_level": "debug",
    }  # fmt: skip
    told: list[str] = []
    with (
        ProcessorProcess(module, tmp_path / "data", partitions=1, **settings) as processor,
        httpx.Client(base_url=processor.url, timeout=20, headers={"x-api-key": KEY}) as http,
    ):
        body = b'{"ref": "main"}'
        signature = "sha256=" + hmac.new(WEBHOOK.encode(), body, hashlib.sha256).hexdigest()
        github = {"x-github-event": "push", "x-github-delivery": "d1", "content-type": "application/json"}
        accepted = http.post("/v1/webhooks/github", content=body, headers={**github, "x-hub-signature-256": signature})
        assert accepted.is_success, accepted.text
        answers = [
            accepted,
            http.post("/v1/webhooks/github", content=body, headers={**github, "x-hub-signature-256": WEBHOOK}),
            http.get("/v1/runs", headers={"x-api-key": WRONG}),
            http.get("/v1/runs", headers={"authorization": f"Bearer {WRONG}"}),
            http.get("/v1/runs", params={"limit": OWN, "api_key": KEY}),
            http.post("/v1/workflows/pushed/run", content=b"{", headers={"authorization": f"Bearer {KEY}"}),
        ]
        end = time.monotonic() + 30
        while not (runs := http.get("/v1/runs", params={"status": "failed"}).json()["items"]):
            assert time.monotonic() < end, processor.tail()
            time.sleep(0.05)
        run_id = runs[0]["run_id"]
        paths = ["runs", f"runs/{run_id}", f"runs/{run_id}/events", "processors", "approvals", "workflows"]
        answers += [http.get(path) for path in (*(f"/v1/{path}" for path in paths), "/metrics", "/readyz")]
        statuses = [answer.status_code for answer in answers]
        # Where the caller's own text is wrong, its answer may quote it.
        told += [answer.text for answer in answers if KEY not in str(answer.request.url)]
        for form in ([], ["--json"]):
            command = [sys.executable, "-m", "agnt5_engine.cli", "doctor", *form]
            env = processor.env | {"AGNT5_URL": processor.url, "COLUMNS": "200"}
            told.append(subprocess.run(command, env=env, capture_output=True, text=True, check=False).stdout)
            assert "API keys" in told[-1]
    assert 401 in statuses
    assert 422 in statuses or 400 in statuses
    assert json.loads(answers[8].text)["items"]
    log = processor.log.read_text()
    assert "processor.starting" in log
    told.append(log)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path not in (module, processor.log)]
    told += [path.read_bytes().decode("latin-1") for path in files]
    assert len(files) > 5
    for secret in (KEY, OWN, WRONG, WEBHOOK, KAFKA, TLS, PAYLOAD, signature.removeprefix("sha256=")):
        assert not [text[max(0, text.index(secret) - 200) :][:400] for text in told if secret in text]
