"""Sampling with a transformers model in the process itself."""

from typing import ClassVar, Literal

from pydantic import Field

from sppo.sampling import SampledPolicy, Sampler, Sampling


class TransformersSampling(Sampling):
    """The engine `transformers`: this package's decode loop on a transformers model."""

    takes_adapters: ClassVar[bool] = True
    gives_first_tokens: ClassVar[bool] = True

    engine: Literal["transformers"] = "transformers"
    batch_tokens: int = Field(65536, ge=1, description="Prompt and response tokens decoded side by side.")

    def load(self, policy: SampledPolicy) -> Sampler:
        """See :meth:`Sampling.load`."""
        from sppo.policy import load as policies
        from sppo.sampling.decoding import TransformersSampler
        from sppo.sampling.memory import check_room

        check_room(policy.folder, policy.dtype, self.batch_tokens, policy.quantization)
        model = policies.load(
            policy.folder,
            dtype=policy.dtype,
            attn_implementation=policy.attn_implementation,
            trust_remote_code=policy.trust_remote_code,
            quantization=policy.quantization,
        )
        return TransformersSampler(model, self, policy.stop_ids, policy.decode)
