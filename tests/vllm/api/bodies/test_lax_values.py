"""What vLLM's routes make of values that are not quite of their type, we make of them too."""

from __future__ import annotations

import json
import math

import pytest
from echo_client import CHAT, COMPLETIONS, Client, WordPredictor
from pydantic import TypeAdapter, ValidationError

from lengthwise.data.slo import SloTable
from lengthwise.scheduler.serving.api.body.readers import is_true
from lengthwise.scheduler.serving.api.body.request_body import parse_body
from lengthwise.scheduler.vllm_adapter.api.routes import READERS

TALK = [{"role": "user", "content": "one two"}]
WORDS = ("true", "TRUE", "t", "T", "y", "Yes", "on", "1", "false", "no", "0", "", " true", "2")
VALUES = [*WORDS, True, False, 1, 0, 2, -1, 1.0, 0.0, 0.5, math.nan, 10**30, None, [], [1], {}]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_true_is_what_it_is_to_the_server(value):
    try:
        wanted = TypeAdapter(bool).validate_python(value)
    except ValidationError:
        wanted = False  # which the server refuses
    assert is_true(value) is wanted


@pytest.mark.parametrize("value", [True, "true", "on", 1, 1.0])
@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, {"messages": TALK}), (COMPLETIONS, {"prompt": "one two"})]
)
def test_beams_are_parts_of_one_request_however_they_are_asked_for(path, body, value):
    client = Client(WordPredictor())
    (told,) = client.told(body | {"use_beam_search": value, "max_tokens": 1}, path=path)
    assert told["lw_parts"] == 0  # nobody knows how many will come


@pytest.mark.parametrize(
    "prompt", [[1, 2], [1.0, 2.0], [1, "2"], ["1", 2], [True, 5], [1, 2.0, "3"], [5]], ids=repr
)
def test_a_list_with_a_number_in_it_is_one_prompt_of_tokens(prompt):
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    seen = CompletionRequest(model="m", prompt=prompt).prompt
    assert all(isinstance(token, int) for token in seen)
    assert READERS[COMPLETIONS]({"prompt": prompt}, lambda _: None).prompts == [None]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_response_is_in_the_background_where_the_server_has_it_there(value):
    raw = json.dumps({"input": "one two", "background": value}).encode()
    parsed = parse_body(raw, {}, SloTable({}), READERS["/v1/responses"])
    assert parsed.in_background is is_true(value)
