from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lengthwise.scheduler.vllm_adapter.emulated.player import JobRequest
from lengthwise.scheduler.vllm_adapter.emulated.prompts import prompt_token_ids

sized = st.builds(
    lambda tokens, prefix, share: JobRequest(
        0.0, tokens, 1, prefix, 0 if prefix is None else int(share * tokens)
    ),
    st.integers(1, 400),
    st.sampled_from([None, "system", "tools"]),
    st.floats(0, 1),
)


def common_beginning(one, other):
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


@given(st.lists(sized, max_size=12))
def test_prompts_have_their_sizes_and_share_what_the_workload_says(requests):
    prompts = prompt_token_ids(requests)
    assert [len(p) for p in prompts] == [r.prompt_tokens for r in requests]
    assert prompts == prompt_token_ids(requests)
    for i, one in enumerate(requests):
        for j, other in enumerate(requests[:i]):
            common = common_beginning(prompts[i], prompts[j])
            if one.prefix is not None and one.prefix == other.prefix:
                assert common >= min(
                    one.prefix_tokens, other.prefix_tokens, one.prompt_tokens - 1,
                    other.prompt_tokens - 1,
                )  # fmt: skip
            else:
                assert common < 16  # less than a block of KV cache by chance


def test_another_seed_gives_other_tokens():
    requests = [JobRequest(0.0, 50, 1, "system", 40)]
    assert prompt_token_ids(requests, seed=1) != prompt_token_ids(requests, seed=2)
