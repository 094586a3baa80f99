"""
Which items make up the batch of a step: a pure function of (seed, epoch, step).

A resumed run must see the batches that it would have seen, whatever the last attempt had already
fetched ahead, and with the same augmentation. So the sampler only counts, from the run's next
step on, and each batch carries what its random draws are seeded from.
"""

from __future__ import annotations

import random
import sys
from array import array
from collections.abc import Callable, Iterator
from typing import Any

from modalkit.errors import RunError
from modalkit.runs import seeding


class Batch(list[int]):
    """
    The indices of one step's items; iterating over it seeds what the items draw from.

    A DataLoader iterates over a batch exactly where it fetches the items, in a worker or in the
    main process. Python's, numpy's and torch's generators are seeded from (seed, step) there,
    whatever the number of workers. In the main process they are put back after the last item, so
    that augmentation does not disturb the training stream.
    `torch.initial_seed()` is then a number of the step's own, for datasets that make generators.
    """

    def __init__(self, indices: Any, seed: int, step: int) -> None:
        super().__init__(indices)
        self.seed = seed
        self.step = step

    def __iter__(self) -> Iterator[int]:
        before = None if _is_worker() else seeding.capture_host()
        seeding.seed_data(self.seed, self.step)
        try:
            yield from super().__iter__()
        finally:
            if before is not None:
                seeding.restore_host(before)

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would iterate over the batch on its way to a worker.
        return Batch, (self[:], self.seed, self.step)


class Batches:
    """
    A batch sampler without end, for `DataLoader(dataset, batch_sampler=...)`.

    Args:
        n_items: Items in the dataset.
        batch_size: Items per step.
        shuffle: Draw a new order for each epoch.
        drop_last: Leave out the items at an epoch's end that do not fill a batch.
        seed: The run's seed.
        next_step: Gives the step that an iteration starts at.

    Attributes:
        steps_per_epoch: Steps until every item was seen once.

    Raises:
        RunError: There is not a single batch per epoch.
    """

    def __init__(
        self,
        n_items: int,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = True,
        seed: int,
        next_step: Callable[[], int],
    ) -> None:
        if n_items < 1 or batch_size < 1 or (drop_last and n_items < batch_size):
            raise RunError(
                f"batches(n_items={n_items}, batch_size={batch_size}, drop_last={drop_last}): an "
                f"epoch has no batch. Pass a dataset that has items and a batch_size of at most "
                f"as many, or drop_last=False."
            )
        self.steps_per_epoch = n_items // batch_size if drop_last else -(-n_items // batch_size)
        self._n_items = n_items
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._next_step = next_step
        self._order: tuple[int, array[int]] = (-1, array("q"))

    def __iter__(self) -> Iterator[Batch]:
        """Count from the run's next step on; a loader that fetches ahead runs ahead of the run."""
        return self._count(self._next_step())

    def __repr__(self) -> str:
        return (
            f"<Batches of {self._batch_size} of {self._n_items} items, "
            f"{self.steps_per_epoch} steps per epoch>"
        )

    def batch(self, step: int) -> Batch:
        """Return the batch of *step*, whichever steps came before."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self._batch_size
        indices = self._epoch_order(epoch)[start : start + self._batch_size]
        return Batch(indices.tolist(), self._seed, step)

    def _count(self, step: int) -> Iterator[Batch]:
        while True:
            yield self.batch(step)
            step += 1

    def _epoch_order(self, epoch: int) -> array[int]:
        if self._order[0] != epoch:
            order = array("q", range(self._n_items))
            if self._shuffle:
                # Python's generator, because its numbers are the same in every version of it;
                # torch promises this for none of its own.
                random.Random(seeding.derive(self._seed, "epoch", epoch)).shuffle(order)
            self._order = (epoch, order)
        return self._order[1]


def _is_worker() -> bool:
    """Say whether this process fetches for a DataLoader, and its generators are nobody else's."""
    data = sys.modules.get("torch.utils.data")
    return data is not None and data.get_worker_info() is not None
