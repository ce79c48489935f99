"""Dropout as numbers: rates of hidden states, attention and head, also where the architecture has none.

**In one sentence.** The model's dropout gets the rates that are asked for, and where an architecture has no dropout it
is put in.

**Formula.** x̃ = m · x / (1 − p), with m drawn anew for every entry and pass, 1 with probability 1 − p and else 0.

**Hyper-parameters.** `hidden`: of the embeddings, and of what attention and feed-forward blocks add to the hidden
states; 0 to 0.5 is a sensible search · `attention`: of attention probabilities; 0 to 0.5 · `head`: before the head's
last layer; 0 to 0.95. None, the default of each, leaves what the checkpoint has: without any rate it is vanilla, which
is said before a run. `head=0.9` is the very large dropout of Zhang and Bottou: judge it on data of another kind, not on
the development set.

**Where it acts.** In every training pass, as built-in dropout does; evaluation has none. BERT, RoBERTa, ELECTRA,
DeBERTa, MPNet, XLNet and GPT-2 have all places of `hidden`: there it is a number alone. It is put in behind the last
matrix of ModernBERT's attention and feed-forward blocks, of Llama's, Qwen's and their kin's, of DistilBERT's attention
and of ALBERT's feed-forward block; before the first layer of decoders without dropout of their embeddings; and before
the head's last layer where a head has none (decoders).

**Cost.** One forward and one backward pass; one mask, (batch, seq, dim), for each place where it was put in.

**Randomness drawn.** Of the stream that the model's own dropout draws from.

**Interactions.** `rdrop+dropout(hidden=0.1)` is R-Drop on ModernBERT and on decoders. Refused: a rate above 0 beside a
method that asks for that dropout to be off (`hype`, `mixout`; `hype(dropout=keep)` allows it), two methods with two
rates for one place, `attention` where the architecture has no such rate, and on XLNet, which has one rate for both, a
`hidden` that is not `attention`. With `lora` what is put in acts on the matrix with its update.

**Deviations from the paper and its code.**
1. Ours: no paper describes it. The rates are set in the built modules, not in the configuration, whose fields mean
other places in every architecture: ModernBERT's `attention_dropout` acts on the attention block's output as well, and
its `mlp_dropout` between the two matrices. Of these `attention` sets attention probabilities alone, and the latter
stays.
2. `head` sets all dropout of the head: heads of two layers (RoBERTa, ELECTRA, DeBERTa, MPNet) have it before both.
3. `hidden` leaves the head's rate as the checkpoint has it, also where a configuration has one number for both.
4. For the very large dropout the recipe stays: the authors train with SGD.

**Source.** Srivastava et al., JMLR 2014; Zhang and Bottou 2024 (arXiv 2403.00946); code TjuJianyu/verylarge_dropout.
"""

from __future__ import annotations

from finetune_bench.method.base import Facts, Method
from finetune_bench.model.dropout import Rates
from finetune_bench.parameters import Range, parameter


class DropoutRates(Method):
    """Dropout at rates of one's own, also where the architecture has none."""

    name = "dropout"
    # 1: in the runs of a grid no rate was set.
    version = 2
    acts_on = "hidden states"
    batch_layout = "unpadded_trimmed"

    hidden: float | None = parameter(
        None,
        interval="[0, 1)",
        neutral=None,
        search=Range(0, 0.5),
        help="of embeddings and both blocks (none: as it is)",
    )
    attention: float | None = parameter(
        None, interval="[0, 1)", neutral=None, search=Range(0, 0.5), help="of attention probabilities (none: as it is)"
    )
    head: float | None = parameter(
        None,
        interval="[0, 1)",
        neutral=None,
        search=Range(0, 0.95),
        help="before the head's last layer (none: as it is)",
    )

    @property
    def rates(self) -> Rates:
        """Return the rates."""
        return Rates(self.hidden, self.attention, self.head)

    @property
    def stochastic(self) -> bool:
        """Say whether a rate is above zero."""
        return any((self.hidden, self.attention, self.head))

    def warning(self, facts: Facts) -> str | None:
        """Say that it does nothing without a rate, and where published advice is against it."""
        if self.rates == Rates():
            return "it has no rate, so it is vanilla; give hidden=, attention= or head= a number"
        if self.head and facts.task.kind == "regression":
            return "dropout before a regression head changes the scale of its predictions; advice is against it"
        return None
