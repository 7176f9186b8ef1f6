#!/bin/sh
# Three requests to a running server, each with its objectives in another way:
#   lengthwise serve tiny --port 8000 & sh examples/curl.sh http://localhost:8000
set -eu
url=${1:-http://localhost:8000}
post() { curl -sS --fail-with-body "$url/v1/chat/completions" -H 'content-type: application/json' "$@"; echo; }

# headers: a first token within 3 s, then 200 ms a token
post -H 'x-slo-ttft-ms: 3000' -H 'x-slo-tpot-ms: 200' \
    -d '{"model": "tiny", "max_tokens": 16, "messages": [{"role": "user", "content": "Name three rivers."}]}'

# the body: the whole answer within 20 s, counted under the class "code", for the tenant "ci"
post -d '{"model": "tiny", "max_tokens": 16,
          "vllm_xargs": {"slo_e2e_ms": 20000, "slo_class": "code", "tenant": "ci"},
          "messages": [{"role": "user", "content": "Write a sorting function in C."}]}'

# no objective: best effort
post -d '{"model": "tiny", "max_tokens": 16, "messages": [{"role": "user", "content": "Tell me a story."}]}'

# what the scheduler made of them
curl -sS --fail "$url/lengthwise/status"
echo
