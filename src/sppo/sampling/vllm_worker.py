"""The process that vLLM runs in, driven by :class:`sppo.sampling.vllm_engine.VllmEngine` over a connection.

    python -m sppo.sampling.vllm_worker DESCRIPTOR

It receives the engine's arguments and answers when the engine has started, with whether it computes on a CPU and how many
responses it decodes side by side. Then it receives requests, also while it computes: `sample`, prompts with their settings,
which it answers prompt by prompt as they are finished, and `load_weights`, the folder of another policy or None for the one that
is loaded, which it answers when the weights are there and cached prefixes forgotten. It ends when the other side has gone.
"""

import os
import queue
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any


def main() -> None:
    """Serve one engine."""
    connection = Connection(int(sys.argv[1]))
    received: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, received), daemon=True).start()
    try:
        from vllm.platforms import current_platform

        engine = _engine(received.get())
        rows = engine.vllm_config.scheduler_config.max_num_seqs
        connection.send(("ready", (current_platform.is_cpu(), rows)))
        while True:
            _receive(connection, engine, received)
            for output in engine.step():
                connection.send(("drawn", (output.request_id, _responses(output))))
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


def _load_weights(engine: Any, folder: str | None) -> None:
    if folder is not None:
        engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        engine.collective_rpc(_pack_kept_weights)
    if not engine.reset_prefix_cache():
        raise RuntimeError("cached prefixes of the policy before are still in use")


def _pack_kept_weights(worker: Any) -> None:
    # On a CPU each layer multiplies by a packed copy of its weight. Loading weights packs those layers anew whose weight
    # is in the file. An output head that is tied to the embedding is not in the file: without this, its packed copy would
    # remain the policy's before. Layers that drop their weight after packing have been packed while loading.
    for layer in worker.get_model().modules():
        if hasattr(layer, "cpu_linear") and layer.weight.numel():
            layer.quant_method.process_weights_after_loading(layer)


def _receive(connection: Connection, engine: Any, received: "queue.SimpleQueue[Any]") -> None:
    """Take what has arrived, and wait for a request if there is nothing to compute."""
    while not received.empty() or not engine.has_unfinished_requests():
        command, content = received.get()
        if command == "load_weights":
            _load_weights(engine, content)
            connection.send(("loaded", None))
        else:
            _begin(engine, *content)


def _begin(engine: Any, settings: dict[str, Any], prompts: list[tuple[str, list[int], int]], k: int) -> None:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    for name, prompt, seed in prompts:
        params = SamplingParams(n=k, seed=seed, output_kind=RequestOutputKind.FINAL_ONLY, **settings)
        engine.add_request(name, TokensPrompt(prompt_token_ids=prompt), params)


def _responses(output: Any) -> list[tuple[list[int], str, list[float]]]:
    """The token ids, the reason of the end and the log-probabilities of each response to a prompt."""
    assert output.finished
    drawn = []
    for response in sorted(output.outputs, key=lambda response: int(response.index)):
        ids = [int(token) for token in response.token_ids]
        log_probs = [
            float(candidates[token].logprob) for candidates, token in zip(response.logprobs, ids, strict=True)
        ]
        if response.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"a response was ended by {response.finish_reason!r}")
        drawn.append((ids, response.finish_reason, log_probs))
    return drawn


if __name__ == "__main__":
    main()
