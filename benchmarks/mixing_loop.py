"""The accuracy-aware loop of mixed precision: the smallest model whose loss is shown to be within the limit.

Sizes are tried by bisection on samples that may be looked at again and again; what looks good is verified on others.
"""

from dataclasses import dataclass, field

from benchmarks.losses import Losses, loss_text
from benchmarks.mixing import Choice, Mixer, Tell
from quant.mixed import Trial, cheapest_within
from quant.search import Loss

VERIFICATIONS = 2
"""How many of the evaluations are kept for verifying."""
FEWEST = 1 + VERIFICATIONS


@dataclass
class Loop:
    """One run of the loop, of at most ``most`` evaluations.

    choices  size in bytes -> what was chosen within it
    done     evaluations so far
    """

    mixer: Mixer
    losses: Losses
    most: int
    tell: Tell
    choices: dict[float, Choice] = field(default_factory=dict)
    done: int = 0

    def run(self) -> list[Trial]:
        """Return the trials by growing size in bytes; the first that holds is the answer, if one does."""
        sizes = self.mixer.sizes(2 ** (self.most - VERIFICATIONS) - 1)
        fresh = len(self.losses.parts.verification)
        return cheapest_within(sizes, self._judge, self._verify, fresh, self._tolerated, VERIFICATIONS)

    @property
    def _tolerated(self) -> float:
        return self.losses.drop.limit.amount

    def _judge(self, size: float) -> Loss:
        self.choices[size] = self.mixer.within_size(size)
        artifact = self.mixer.make(self.choices[size])
        for samples in self.losses.looks:
            loss = self.losses.seen(artifact, samples)
            if loss.low > self._tolerated or loss.high <= self._tolerated:
                break
        self._count(size, loss, fresh=False)
        return loss

    def _verify(self, size: float) -> Loss:
        loss = self.losses.verified(self.mixer.make(self.choices[size]))
        self._count(size, loss, fresh=True)
        return loss

    def _count(self, size: float, loss: Loss, fresh: bool) -> None:
        self.done += 1
        choice, lost = self.choices[size], loss_text(loss, self.losses.drop.unit, fresh)
        place = f"evaluation {self.done} of at most {self.most}"
        self.tell(f"{place}: {choice.bits_per_weight:.3g} bits per weight, {choice.size / 1e6:.3g} MB, {lost}")
