"""BitFit: only the biases train, and the head.

**In one sentence.** All matrices, tables and norms' scales keep their pre-trained values; the body's bias vectors,
about one weight in a thousand, and the head learn the task.

**Formula.** θ_j is fixed at its start for every tensor j of the body that is no bias; the rest trains as usual.

**Hyper-parameters.** `terms`: `all` biases of the body (the default), or `query_mlp`, the paper's small set: the biases
of the query and of the feed-forward block's first matrix, with the pooler's. Learning rates of full fine-tuning are far
too small: the official example takes 1e-3 where full fine-tuning takes 1e-5, and 10 to 100 times vanilla's best should
be tried, by a search or a `--lr` of its own.

**Where it acts.** In `setup`, in the phase that chooses what trains: frozen tensors require no gradient and are left
out of the optimiser. Teardown makes them trainable again.

**Cost.** One forward and one backward pass; neither gradients nor moments of what is frozen. Inputs of frozen matrices
need not be kept for the backward pass; by how much that lowers the activations depends on the architecture, so that the
formula of what is saved is an upper bound.

**Randomness drawn.** None.

**Interactions.** Other methods that decide which weights train (`lora`, `top_k` …) are refused, and so are those that
act on matrices, which are frozen here: `mixout`, `child_tuning_f`, `child_tuning_d`. `reinit_layers` is refused: its
fresh matrices would stay random. `l2_sp`, `prior_decay` and `recadam` pull at biases alone, which is said before a run.
`noisytune` leaves its noise on what is frozen.

**No neutral setting.** No value of its parameters lets all weights train.

**Deviations from the paper and its code.**
1. What a bias is, and what the head, is told by structure. The official code goes by names: "bias" takes MPNet's table
   of relative positions in as well, and "classifier" leaves XLNet's head frozen but for its biases. The pooler's matrix
   is the body's in BERT and ALBERT and stays fixed, as there; in DeBERTa it is the head's and trains.
2. XLNet's content and position biases are matrices of (heads, width of a head), and train.
3. Architectures without biases (Llama, Qwen3, ModernBERT) are refused: nothing but the head would train.

**Source.** Ben Zaken et al., ACL 2022 (arXiv 2106.10199); code benzakenelad/BitFit.
"""

from __future__ import annotations

from torch import nn

from finetune_bench.errors import ModelError
from finetune_bench.method.base import Facts, Method, Phase
from finetune_bench.method.cost import Memory
from finetune_bench.method.reasons import without_trained_matrices
from finetune_bench.method.step import Run
from finetune_bench.model.structure import body, is_linear, layers, parameter_depths
from finetune_bench.parameters import parameter

# What the module of a query alone is called; GPT-2 and others have one matrix for query, key and value.
QUERIES = ("query", "query_proj", "q_proj", "q_lin", "q")
ON_MATRICES = ("mixout", "child_tuning_f", "child_tuning_d")
ANCHORS = ("l2_sp", "prior_decay", "recadam")


def biases(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the body's bias vectors, by their names in the model."""
    inside = set(body(model).parameters())
    return {name: weight for name, weight in model.named_parameters() if weight in inside and name.endswith("bias")}


def query_and_mlp_biases(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the biases of the queries and of the feed-forward blocks' first matrices, and the pooler's.

    Returns:
        By their names in the model; nothing where the queries have no biases of their own.

    Raises:
        ModelError: the layers were not found.
    """
    depth, count = parameter_depths(model), len(layers(model))
    chosen, queries = {}, 0
    for name, weight in biases(model).items():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        is_query = attribute == "q_bias" or path.rpartition(".")[2] in QUERIES
        queries += is_query
        widens = isinstance(module, nn.Linear) and module.out_features > module.in_features
        after_layers = depth[weight] == count and is_linear(module)
        if is_query or after_layers or (widens and 0 <= depth[weight] < count):
            chosen[name] = weight
    return chosen if queries else {}


class BitFit(Method):
    """Only biases and the head train."""

    name = "bitfit"
    acts_on = "which weights train"
    batch_layout = "unpadded_trimmed"
    phase = Phase.SELECT
    own_learning_rate = "biases need larger steps than full fine-tuning: try 10 to 100 times vanilla's rate"

    terms: str = parameter(
        "all", choices=("all", "query_mlp"), help="all biases, or those of query and feed-forward block (paper)"
    )

    @property
    def exclusive(self) -> tuple[str, ...]:
        """Claim the choice of the weights that train."""
        return ("weights that train",)

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse models without the biases that are to train, and methods that need what is frozen."""
        for partner in facts.partners:
            if partner.name == "reinit_layers":
                return "the matrices that reinit_layers re-draws would stay random"
            if partner.name in ON_MATRICES:
                return f"{partner.name} acts on matrices, and they are frozen"
        owner = type(facts.skeleton).__name__
        if not biases(facts.skeleton):
            return f"{owner} has no biases outside the head, which would train alone"
        try:
            if not self._biases(facts.skeleton):
                return f"the queries of {owner} have no biases of their own; terms=all trains all that it has"
        except ModelError as error:
            return str(error)
        return without_trained_matrices(facts)

    def warning(self, facts: Facts) -> str | None:
        """Say where an anchor has hardly anything to hold."""
        names = [partner.name for partner in facts.partners if partner.name in ANCHORS]
        return f"{names[0]} acts on biases alone: the matrices are frozen" if names else None

    def _biases(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return biases(model) if self.terms == "all" else query_and_mlp_biases(model)

    def memory(self, inner: Memory) -> Memory:
        """Take gradients and moments of the frozen weights off."""
        return inner.plus(kept={"P_frozen": -3})

    def setup(self, run: Run) -> None:
        """Freeze what is neither a bias that trains nor the head's."""
        inside, trained = set(body(run.model).parameters()), set(self._biases(run.model).values())
        self.frozen_ = [weight for weight in run.params.values() if weight in inside and weight not in trained]
        for weight in self.frozen_:
            weight.requires_grad_(False)

    def teardown(self, run: Run) -> None:
        """Let all weights train again."""
        for weight in getattr(self, "frozen_", []):
            weight.requires_grad_(True)
