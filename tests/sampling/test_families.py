"""The causal families of transformers in the fallback sampler: right and fast, right in rows, or refused."""

import model_families
import pytest
import torch

from sppo.policy.load import PolicyError
from sppo.sampling import SamplingError
from sppo.sampling.decoding import TransformersSampler
from sppo.sampling.key_values import Cohorts, OneBatch, OnePrompt, Recomputed
from sppo.sampling.probe import fastest_right_way
from sppo.sampling.transformers import TransformersSampling
from sppo.training.log_probs import measure_capabilities

REFUSED = {"llama, dynamic NTK", "phi3, longrope"}
IN_ROWS = {"falcon_mamba", "mamba", "minimax", "openai-gpt", "recurrent_gemma", "rwkv", "xlstm"}
IN_ROWS |= {"deepseek_v4", "qwen4_exp_text"}
QUICK = ["gemma2", "gpt_neo", "llama4_text", "mamba", "phi3, longrope", "recurrent_gemma"]


def make_sampler(name, **settings):
    model = model_families.make(name)
    return model, TransformersSampler(model, TransformersSampling(batch_tokens=400, **settings), [2])


def check(name):
    new_tokens = model_families.PATH - 30
    model, sampler = make_sampler(name, max_new_tokens=new_tokens)
    prompts = [model_families.draw_ids(length, seed=length) for length in (30, 9, 20)]
    keys = [(number,) for number in range(3)]
    if name in REFUSED:
        with pytest.raises(SamplingError, match=r"position embedding \(RoPE\).* more than 32 tokens"):
            sampler.sample(prompts, keys, 2)
        model, sampler = make_sampler(name, max_new_tokens=12)  # within the limit the policy is well defined
        prompts = [prompt[:20] for prompt in prompts]
    assert (sampler._key_values in (OnePrompt, Recomputed)) == (name in IN_ROWS), sampler._key_values
    assert sampler._key_values in (Cohorts, OneBatch, OnePrompt, Recomputed)
    lengths = []
    for prompt, responses in zip(prompts, sampler.sample(prompts, keys, 2), strict=True):
        for response in responses:
            ids = torch.tensor([prompt + response.token_ids])
            with torch.no_grad():
                log_probs = (
                    model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                )
            expected = log_probs.gather(1, ids[0, len(prompt) :, None]).squeeze(1)
            torch.testing.assert_close(torch.tensor(response.token_log_probs), expected, atol=1e-4, rtol=1e-4)
            lengths.append(ids.shape[1])
    assert max(lengths) == (32 if name in REFUSED else model_families.PATH)


@pytest.mark.parametrize("name", QUICK)
def test_what_is_drawn_has_the_probability_of_a_plain_forward(name):
    check(name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", model_families.NOT_CAUSAL)
def test_a_model_that_sees_later_tokens_is_refused(name):
    model = model_families.make(name)
    message = "predicts a token from later tokens.* choose a causal language model"
    with pytest.raises(SamplingError, match=message):
        fastest_right_way(model)
    with pytest.raises(PolicyError, match=message):
        measure_capabilities(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # some families warn about their own code
@pytest.mark.parametrize("name", [name for name in model_families.NAMES if name not in QUICK])
def test_every_family_is_right_or_refused(name):
    check(name)
