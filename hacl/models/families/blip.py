"""The BLIP line: a ViT tower and a Q-Former, whose few queries become the image's tokens, before Llama or OPT.

Attention is causal. The processor writes the image before the beginning of the text's tokens (BOS), so an image sees
nothing but itself, and `image_pool=last` reads the state of its last query. The stock classes take no chat template:
`data.template=plain`, with one image for each text.

Shapes: I images, P patches of one, N queries, Dv vision width, D hidden size.
"""

from __future__ import annotations

from torch import Tensor, nn

from hacl.models.adapters import Adapter, SplitAdapter, UnsupportedModelError


class Blip2Adapter(SplitAdapter):
    """`Blip2ForConditionalGeneration` over a Llama decoder; over OPT `Blip2OptAdapter`. One-dimensional positions.

    What a frozen tower's cache stores are the states of the patches (I, P, Dv); the Q-Former belongs to the projector.
    """

    VISION = ("vision_model",)
    CONNECTOR = ("qformer", "language_projection")
    PARAMETERS = ("query_tokens",)
    DECODER = "language_model.model"
    LM_HEAD = "language_model.lm_head"

    @classmethod
    def find(cls, model: nn.Module) -> Adapter:
        if not model.config.use_decoder_only_language_model:
            raise UnsupportedModelError(
                f"the language model of this {type(model).__name__} is an encoder and a decoder "
                f"({type(model.language_model).__name__}); take a checkpoint over OPT, Llama or Vicuna"
            )
        is_opt = hasattr(model.language_model.model, "decoder")
        return super(Blip2Adapter, Blip2OptAdapter if is_opt else cls).find(model)

    def vision_features(self, pixel_values: Tensor) -> Tensor:
        tower = self.vision_tower
        return tower(pixel_values.to(next(tower.parameters()).dtype)).last_hidden_state

    def project(self, features_IPDv: Tensor) -> Tensor:
        """(I, P, Dv) -> (I, N, D); the Q-Former may be kept in fp32."""
        model = self.model
        queries = model.query_tokens.repeat(len(features_IPDv), 1, 1)
        states = model.qformer(  # no mask: every patch is seen, and a mask's content is not known on the meta device
            query_embeds=queries, encoder_hidden_states=features_IPDv.to(queries.dtype)
        ).last_hidden_state
        return model.language_projection(states.to(model.language_projection.weight.dtype))


class Blip2OptAdapter(Blip2Adapter):
    """BLIP-2 over OPT: positions are looked up in a learnt table, by the position of a token in its own sequence."""

    DECODER = "language_model.model.decoder"
    NORM = "final_layer_norm"


class InstructBlipAdapter(Adapter):
    """`InstructBlipForConditionalGeneration` over Vicuna: the Q-Former also reads the prompt.

    Features belong to an image and a prompt: every sequence that shows an image has those for `data.prompt`, which all
    of them ask (`data.template=plain`), the strict image root too, in which the decoder itself sees no prompt. Features
    of a frozen tower are not cached.
    """

    VISION = Blip2Adapter.VISION
    CONNECTOR = Blip2Adapter.CONNECTOR
    PARAMETERS = Blip2Adapter.PARAMETERS
    DECODER = Blip2Adapter.DECODER
    LM_HEAD = Blip2Adapter.LM_HEAD
    inputs = ("pixel_values", "qformer_input_ids", "qformer_attention_mask")

    def unread(self) -> list[nn.Module]:
        """What only the text's states pass behind the Q-Former's last attention; queries alone go on from there."""
        last = self.model.qformer.encoder.layer[-1]
        return [last.intermediate, last.output]
