"""In LMDeploy's environment: greedy tokens of its engine on the CPU device, and transformers'.

``cpu_generate.py MODEL CASE``: a JSON document with both, and what the case is to show.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

os.environ |= {"LMDEPLOY_ENABLE_CHECK_ENV": "0", "LMDEPLOY_SKIP_WARMUP": "1"}

import torch

from lengthwise.scheduler.lmdeploy_adapter.inside import cpu_device

TOKENS = {"memory": 120}
SETTINGS = {
    "batch": {},
    "chunks": {"prefill_tokens": 64},
    "prefix": {"enable_prefix_caching": True},
    "memory": {"blocks": 17},
}
PROMPTS = [[(7 * j * j + 13 * i + 3 * j) % 7000 + 50 for j in range(40 + 37 * i)] for i in range(6)]


def references(model, count):
    from transformers import AutoModelForCausalLM

    llama = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = []
    for prompt in PROMPTS:
        out = llama.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False,
            max_new_tokens=count, min_new_tokens=count, pad_token_id=0,
        )  # fmt: skip
        found.append(out[0, len(prompt) :].tolist())
    return found


async def generate(engine, session, prompt, count):
    from lmdeploy.messages import GenerationConfig

    wanted = GenerationConfig(max_new_tokens=count, ignore_eos=True, top_k=1)
    answers = engine.create_instance().async_stream_infer(session, prompt, wanted)
    return [token async for answer in answers for token in answer.token_ids]


async def run(model, case, count):
    from lmdeploy.pytorch.engine.engine import Engine

    asked = {"slots": 8, "blocks": 200, "prefill_tokens": 2048, "session_len": 4096}
    engine = Engine(
        model, cpu_device.engine_settings(**asked | SETTINGS[case], enable_metrics=False)
    )
    engine.start_loop()
    preempted, preempt = [], engine.scheduler.preempt_seqs

    def watched(sequences):
        sequences = list(sequences)
        # ended ones are passed through here too
        preempted.extend(s.session_id for s in sequences if s.num_new_tokens < count)
        return preempt(sequences)

    engine.scheduler.preempt_seqs = watched
    if case == "prefix":
        one = [await generate(engine, i, PROMPTS[5], count) for i in range(2)]
        hits = engine.get_schedule_metrics().prefix_cache_hit_rate
        got, prompts = one, [5, 5]
    else:
        tasks = (generate(engine, i, prompt, count) for i, prompt in enumerate(PROMPTS))
        got, prompts, hits = await asyncio.gather(*tasks), list(range(6)), 0.0
    engine.stop()
    return {"got": got, "prompts": prompts, "preempted": len(preempted), "hit_rate": float(hits)}


def main():
    model, case = sys.argv[1:]
    torch.set_num_threads(1)
    cpu_device.write_random_weights(Path(model))
    count = TOKENS.get(case, 16)
    expected = references(model, count)
    cpu_device.install()
    found = asyncio.run(run(model, case, count))
    print(json.dumps(found | {"expected": [expected[i] for i in found.pop("prompts")]}))


if __name__ == "__main__":
    main()
