import pytest

from lengthwise.predictor.features.request_text import text_of_request


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"prompt": "hello"}, "hello"),
        ({"prompt": ["a", "b"]}, "a\nb"),
        ({"prompt": [1, 2, 3]}, None),
        ({}, None),
        ({"messages": "nonsense"}, None),
        ({"messages": []}, None),
        ({"messages": [{"role": "user", "content": "hi"}]}, "hi"),
        (
            {
                "messages": [
                    {"role": "system", "content": "brief"},
                    {"role": "user", "content": "hi"},
                ]
            },
            "<|system|>\nbrief\n<|user|>\nhi",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "look"},
                            {"type": "image_url", "image_url": {}},
                        ],
                    }
                ]
            },
            "look",
        ),
        ({"messages": [{"role": "user", "content": None}]}, ""),
    ],
)
def test_text_as_the_server_sees_it(body: dict[str, object], text: str | None) -> None:
    assert text_of_request(body) == text


def test_tools_are_part_of_the_prompt() -> None:
    body = {
        "messages": [{"role": "user", "content": "weather?"}],
        "tools": [{"type": "function", "function": {"name": "get_weather"}}],
    }
    text = text_of_request(body)
    assert text is not None
    assert text.startswith("weather?")
    assert '"get_weather"' in text
