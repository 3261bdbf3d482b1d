"""The process that vLLM runs in, driven by :class:`sppo.sampling.vllm.VllmSampler` over a connection.

    python -m sppo.sampling.vllm_worker DESCRIPTOR

It receives the engine's arguments, answers when the engine stands, and then receives batches of prompts with their
settings, each of which it answers prompt by prompt as they are finished. It ends when the other side is gone.
"""

import os
import queue
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any


def main() -> None:
    """Serve one sampler."""
    connection = Connection(int(sys.argv[1]))
    received: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, received), daemon=True).start()
    try:
        engine = _engine(received.get())
        connection.send(("ready", None))
        while True:
            settings, prompts, seeds, k = received.get()
            _serve(engine, settings, prompts, seeds, k, connection)
    except (BrokenPipeError, ConnectionResetError):
        pass
    except Exception as error:
        connection.send(("failed", f"{type(error).__name__}: {error}"))
        raise


def _listen(connection: Connection, received: "queue.SimpleQueue[Any]") -> None:
    while True:
        try:
            received.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # nobody is left to work for: whatever is being computed


def _engine(arguments: dict[str, Any]) -> Any:
    from vllm import EngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.llm_engine import LLMEngine

    if current_platform.is_cpu():
        # vLLM draws a token after every part of a prompt and rewinds the request's random generator for all parts but
        # the last. The generators of a CPU cannot be rewound, so a prompt has to be computed in one part.
        if arguments.get("enable_chunked_prefill"):
            raise ValueError(
                "engine_args.enable_chunked_prefill: true; on a CPU prompts are computed in one part, because each"
                " request has its own random seed. Remove the setting"
            )
        arguments = {**arguments, "enable_chunked_prefill": False}
    return LLMEngine.from_engine_args(EngineArgs(**arguments))


def _serve(
    engine: Any,
    settings: dict[str, Any],
    prompts: list[list[int]],
    seeds: list[int],
    k: int,
    connection: Connection,
) -> None:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        params = SamplingParams(n=k, seed=seed, output_kind=RequestOutputKind.FINAL_ONLY, **settings)
        engine.add_request(str(index), TokensPrompt(prompt_token_ids=prompt), params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            assert output.finished
            drawn = []
            for response in sorted(output.outputs, key=lambda response: int(response.index)):
                ids = [int(token) for token in response.token_ids]
                log_probs = [
                    float(of[token].logprob) for of, token in zip(response.logprobs, ids, strict=True)
                ]
                if response.finish_reason not in ("stop", "length"):
                    raise RuntimeError(f"a response was ended by {response.finish_reason!r}")
                drawn.append((ids, response.finish_reason, log_probs))
            connection.send(("drawn", (int(output.request_id), drawn)))


if __name__ == "__main__":
    main()
