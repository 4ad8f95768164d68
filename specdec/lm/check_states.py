"""The proof at load time that heads can sit on a model: its last hidden states give its logits."""

import torch
from transformers import PreTrainedModel

from specdec.core.errors import first_line
from specdec.lm.check_encoder_decoder import decoder_states_error
from specdec.lm.placement import entry_of
from specdec.lm.recurrent import causal_lm
from specdec.runtime.agreement import TOLERANCE, relative_difference


def states_differ(model: PreTrainedModel) -> str | None:
    """Say why the states that heads and training read are not what the logits are made of, if so.

    Such a model decodes as well as any other: nothing there is made from states.
    """
    try:
        error = states_error(model)
    except Exception as problem:  # whatever foreign code raises
        return first_line(problem)
    if error <= TOLERANCE[model.dtype]:
        return None
    return f"its logits are not what its last hidden states say (relative difference {error:.1e})"


@torch.inference_mode()
def states_error(model: PreTrainedModel) -> float:
    """Compare states as decoding and as training read them, and the logits that follow from them.

    Each time within one forward, so that nothing but rounding can be between them.
    """
    if model.config.is_encoder_decoder:
        return decoder_states_error(model)
    lm = causal_lm(model)
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(lm.vocab_size, (2, 5), generator=generator).to(lm.device)
    lm.open(num_rows=2, capacity=8)
    decoding = lm.forward([0, 1], token_ids, layers=("final",))
    below = {"input_ids": token_ids.to(entry_of(model)), "use_cache": False}
    training = model.base_model(**below, output_hidden_states=True)
    logits = model(input_ids=token_ids, use_cache=False).logits
    return max(
        relative_difference(lm.unembed(decoding.hidden["final"]), decoding.logits),
        relative_difference(lm.unembed(training.last_hidden_state), logits),
        relative_difference(training.hidden_states[-1], training.last_hidden_state),
    )
