"""What a model is made of: numbers of parameters, with nothing said of how many bits each takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Matrices:
    """`count` matrices of one shape [out, width]."""

    out: int
    width: int
    count: int = 1

    @property
    def parameters(self) -> int:
        return self.out * self.width * self.count


@dataclass(frozen=True)
class Attention:
    """How a model attends. Counts are of numbers, in one layer."""

    heads: int
    cached: int  # in the KV cache, for a token
    heads_per_kv: int = 1  # heads that share a key and value
    expanded: int = 0  # what a token's latent is expanded to before it is multiplied; 0: the cache has no latents
    sliding: int = 0  # layers that keep the last tokens alone
    window: int = 0  # of how many tokens
    eager: bool = False  # transformers computes it with the scores of all heads at once


@dataclass(frozen=True)
class ModelSizes:
    """A model's parts. Counts are of numbers; nothing is said of how many bits each takes."""

    name: str
    architecture: str  # config.json's model_type
    layers: int
    hidden: int
    attention: Attention
    experts: tuple[int, ...]  # of each MoE layer
    top_k: int
    expert: tuple[Matrices, ...]  # one expert: gate and up as one matrix, and down
    expert_biases: int
    linear: tuple[Matrices, ...]  # the dense part's linear layers; the output layer too where it is not tied
    plain: int  # norms, biases, routers, attention sinks
    wide: int  # of `plain`, those that are held in float32 whatever the rest is in: routers
    buffers: int  # bytes of what is no parameter: corrections of the routers' choices
    embedding: Matrices
    tied: bool  # the output layer is the embedding
    positions: int | None  # the longest context
    quantised: str | None  # the scheme that the published weights are in
    notes: tuple[str, ...] = ()

    @property
    def expert_parameters(self) -> int:
        return sum(matrix.parameters for matrix in self.expert) + self.expert_biases

    @property
    def kv_per_token(self) -> int:
        """Numbers in the KV cache for a token that no window has left, all layers together."""
        return self.layers * self.attention.cached

    @property
    def dense_held(self) -> int:
        """Parameters outside the experts."""
        return sum(matrix.parameters for matrix in self.linear) + self.plain + self.embedding.parameters

    @property
    def dense_read(self) -> int:
        """Parameters outside the experts that every token reads: of an embedding that is no output layer, one row."""
        return self.dense_held - (0 if self.tied else self.embedding.parameters)

    @property
    def parameters(self) -> int:
        return self.dense_held + sum(self.experts) * self.expert_parameters

    @property
    def token_set(self) -> int:
        """Experts that one token needs, all layers together."""
        return len(self.experts) * self.top_k
