"""The batch runner's command, with vLLM's own options.

    python -m lengthwise.scheduler.vllm_adapter.api.run_batch -i IN -o OUT --model MODEL

Nothing is imported before it is run: the processes of vLLM's engine import this module too, as
Python's way to start a process has it, and want nothing of ours.
"""


def main() -> None:
    """Run it."""
    from lengthwise.scheduler.vllm_adapter.api.batch_runner import run

    run()


if __name__ == "__main__":
    main()
