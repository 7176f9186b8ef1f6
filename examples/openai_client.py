"""Requests with objectives through OpenAI's client: in the body, and as headers.

lengthwise serve tiny --port 8000 &
python examples/openai_client.py http://localhost:8000
"""

import sys
import time

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000"
# a key is needed by the client; the server asks for one only if it was started with --api-key
client = OpenAI(base_url=f"{url}/v1", api_key="none")
question = [{"role": "user", "content": "Name three rivers."}]

start_s = time.monotonic()
answer = client.chat.completions.create(
    model="tiny",
    messages=question,
    max_tokens=16,
    extra_body={"vllm_xargs": {"slo_e2e_ms": 20_000, "slo_class": "code"}},
)
print(f"code: {answer.usage.completion_tokens} tokens in {time.monotonic() - start_s:.2f} s")

start_s, first_s, pieces = time.monotonic(), None, 0
for _ in client.chat.completions.create(
    model="tiny",
    messages=question,
    max_tokens=16,
    stream=True,
    extra_headers={"x-slo-ttft-ms": "3000", "x-slo-tpot-ms": "200", "x-tenant": "docs"},
):
    first_s = first_s or time.monotonic()
    pieces += 1
print(f"chat: first of {pieces} pieces after {first_s - start_s:.2f} s")
