"""`Substitution`: the result of `substitute`, with what can be done with it."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax

from jaxcnn.geometry import whole_number
from jaxcnn.norms import relative_error
from jaxcnn.transform.chains.explicit_kernels import (
    make_kernels_explicit,
    with_explicit_kernels,
)
from jaxcnn.transform.chains.placement import Placement
from jaxcnn.transform.chains.with_chains import apply_with_chains
from jaxcnn.transform.progress import Progress, bar
from jaxcnn.transform.substitution import files as saving
from jaxcnn.transform.substitution.arguments import (
    Budgets,
    check_number,
    check_weight,
    trained_predicate,
)
from jaxcnn.transform.substitution.batches import batches_of
from jaxcnn.transform.substitution.distillation import Loss, Training, dense_chains, squared_error
from jaxcnn.transform.substitution.distillation import train as train_chains
from jaxcnn.transform.substitution.problem import floats
from jaxcnn.transform.substitution.report import SubstitutionReport
from jaxcnn.transform.substitution.tradeoff import TradeOff


@dataclasses.dataclass(frozen=True)
class Substitution:
    """A function with chains in place of kernels.

    Args:
      f: function as it was.
      params: parameters of f, with `KernelChain`s in place of kernels, and `ComputedKernels` in place of parameters
        from which f computes kernels; train them, or replace some.
      report: report on each layer and on the whole; `print` shows a table.
      placements: axes of each kernel in its parameter, by the parameter's path.
      solve: function from other budgets, and the largest error accepted, to their substitution. It holds the dense
        parameters; None after `release`, and for a substitution that was loaded.
      origin: dense parameters, and the arguments on which the result was verified; None where `solve` is None.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxcnn
      >>> def model(params, x):
      ...     return jaxcnn.conv(x, params["kernel"])
      >>> ramp = jnp.outer(jnp.arange(1.0, 6.0), jnp.arange(1.0, 6.0))
      >>> params, x = {"kernel": jnp.broadcast_to(ramp[..., None, None], (5, 5, 8, 8))}, jnp.ones((1, 16, 16, 8))
      >>> small = jaxcnn.substitute(model, params, x, rank=1, schemes="separable")
      >>> small.params["kernel"].windows
      ((5, 1), (1, 5))
      >>> bool(jnp.allclose(small.apply(small.params, x), model(params, x), rtol=1e-3))
      True
    """

    f: Callable[..., Any]
    params: Any = dataclasses.field(repr=False)
    report: SubstitutionReport
    placements: Mapping[str, Placement] = dataclasses.field(repr=False)
    solve: Solve | None = dataclasses.field(default=None, repr=False, compare=False)
    origin: tuple[Any, tuple[Any, ...]] | None = dataclasses.field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the fields of a pickle, which has no `solve` and no `origin`, like a saved substitution."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "solve": None, "origin": None}

    def __str__(self) -> str:
        return str(self.report)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()

    @cached_property
    def apply(self) -> Callable[..., Any]:
        """Pure function f of parameters with chains: `apply(params, *args)`."""
        return apply_with_chains(with_explicit_kernels(self.f), self.placements)

    def curve(self, shares: Sequence[float] = (0.7, 0.5, 0.35, 0.25, 0.18)) -> TradeOff:
        """Returns times and errors for several shares of the multiply-accumulates.

        Every share is solved, verified and timed by itself, as this substitution was.
        `jaxcnn.drawing.draw_tradeoff` draws the result.

        Args:
          shares: shares of the multiply-accumulates that may stay; those that no choice of chains meets are left out.

        Raises:
          ValueError: the substitution was loaded or released, or a share is not in (0, 1].
        """
        if self.solve is None:
            raise ValueError(
                "curve: a substitution that was loaded or released knows its own point only; substitute again"
            )
        for share in shares:
            check_number("curve", "each of shares", share)
        reports = []
        for share in shares:
            try:
                reports.append(self.solve(Budgets(macs=share), math.inf).report)
            except ValueError:
                continue
        reports = sorted((*reports, self.report), key=lambda report: report.macs_share, reverse=True)
        scores = tuple(report.score_after for report in reports if report.score_after is not None)
        return TradeOff(
            tuple((report.macs_share, report.speedup, report.error) for report in reports),
            tuple(report.ms_after for report in reports),
            scores if len(scores) == len(reports) else (),
        )

    def with_budget(
        self,
        *,
        tolerance: float | None = None,
        macs: float | None = None,
        speedup: float | None = None,
        parameter_bytes: int | None = None,
        budget: float | None = None,
        max_error: float | None = None,
    ) -> Substitution:
        """Returns the substitution of the same dense network for other budgets, with what this search has measured.

        The layers are judged, weighed and timed once for all budgets, and the chains are fitted anew. Ranks by layer
        name stay as they were; chains that were trained by `distill` are not taken over.

        Args:
          tolerance, macs, speedup, parameter_bytes, budget: Limits as in `substitute`, all of which are met.
          max_error: Largest error of the results that is accepted, as in `substitute`. None: that of the first call.

        Raises:
          ValueError: the substitution was loaded or released; no budget, or budgets that are not met together.

        Example:
          >>> import jax.numpy as jnp
          >>> import jaxcnn
          >>> def model(params, x):
          ...     return jaxcnn.conv(x, params["kernel"])
          >>> ramp = jnp.outer(jnp.arange(1.0, 6.0), jnp.arange(1.0, 6.0))
          >>> params = {"kernel": jnp.broadcast_to(ramp[..., None, None], (5, 5, 8, 8))}
          >>> small = jaxcnn.substitute(model, params, jnp.ones((1, 16, 16, 8)), macs=0.5, count="macs")
          >>> smaller = small.with_budget(macs=0.3, parameter_bytes=1000)
          >>> smaller.report.macs_share <= 0.3, smaller.report.parameter_bytes_after <= 1000
          (True, True)
        """
        if self.solve is None:
            raise ValueError(
                "with_budget: a substitution that was loaded or released does not hold the dense parameters; "
                "substitute again"
            )
        budgets = Budgets.of(
            "with_budget",
            tolerance=tolerance,
            macs=macs,
            speedup=speedup,
            parameter_bytes=parameter_bytes,
            budget=budget,
        )
        if not budgets.limits:
            raise ValueError("with_budget: give tolerance, macs, speedup, parameter_bytes or budget, got none")
        return self.solve(budgets, None if max_error is None else check_number("with_budget", "max_error", max_error))

    def release(self) -> Substitution:
        """Returns this substitution without the dense parameters and the search, which `solve` keeps in memory."""
        return dataclasses.replace(self, solve=None, origin=None)

    def distill(
        self,
        inputs: Any,
        *,
        steps: int = 200,
        optimizer: Any = None,
        loss: Loss = squared_error,
        layers: float = 1.0,
        train: str | Callable[[str], bool] = "chains",
        dense_params: Any = None,
        test_args: tuple[Any, ...] | None = None,
        progress: Progress = False,
        seed: int = 0,
    ) -> Substitution:
        r"""Returns this substitution with its chains trained to the dense network's own results; no labels are needed.

        Each step takes one batch and makes the squared relative error of the results smaller, and that of the images
        that layers with chains take in, of which the mean over the layers is added:
        $e(f_\text{small}(x), f_\text{dense}(x)) + \lambda\, \text{mean}_l\, e(z_{l,\text{small}}, z_{l,\text{dense}})$
        with $e(a, b) = \lVert a - b \rVert^2 / \lVert b \rVert^2$. The images say far more of an input than the
        results do. Both networks are computed through `accelerate`. About ten times the loss is measured on inputs that
        are held out, and the parameters with the least loss are the result; they may be those before the training.

        Args:
          inputs: inputs such as the function will meet, each batch a tuple of the arguments after params or one array.
            Of a list, batches are drawn at random with replacement, and of three or more a fifth is held out. Of an
            iterator, which must have a batch for each step, one is held at a time; the first two, which are trained on
            first, judge later. An iterator of random pieces of images, some mirrored, lighter or darker, makes few
            images many.
          steps: number of updates.
          optimizer: optax transformation, such as `optax.sgd(0.01)`. By default Adam without weight decay, of clipped
            gradients, whose steps are relative to the size of each link; the rate rises to 0.01 in the first twentieth
            of the steps and falls to zero along a cosine. It needs optax.
          loss: function of the small and of the dense network's results to a number, for example the cross entropy of
            their classes.
          layers: weight $\lambda$ of the images that layers with chains take in; 0 trains to the results alone. Layers
            in loops and branches do not count.
          train: `"chains"` to train the links and keep all else, `"all"` to train every floating parameter, or a
            function of a parameter's name to whether it is trained.
          dense_params: dense parameters; needed where the substitution was loaded or released.
          test_args: arguments after params on which the error is measured; by default those that `substitute` got.
          progress: flag to show a bar, or a function of the steps done and their total, as in `substitute`.
          seed: seed for the draws from a list.

        Returns:
          A `Substitution` of the same structure. `report.error` is the error after training, and
          `report.error_before_training` that before. The layers' own errors are those before; the error on held-out
          inputs and the scores are left out.

        Raises:
          ValueError: the dense parameters or the arguments of the test are unknown; no inputs or too few; nothing to
            train; a loss that is not finite, with the step at which it happened.

        Example:
          >>> import jax.numpy as jnp
          >>> import numpy as np
          >>> import jaxcnn
          >>> def model(params, x):
          ...     return jaxcnn.conv(x, params["kernel"])
          >>> params = {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, 4, 4)), jnp.float32)}
          >>> x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 8, 8, 4)), jnp.float32)
          >>> small = jaxcnn.substitute(model, params, x, rank=3, schemes="low_rank")
          >>> trained = small.distill([x], steps=20)
          >>> trained.report.error < trained.report.error_before_training
          True

        References:
          Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015. Romero et al., "FitNets: hints
          for thin deep nets", 2015: training to what the layers see.
        """
        dense, arguments = self.origin or (None, None)
        dense = dense if dense_params is None else dense_params
        arguments = arguments if test_args is None else test_args
        if dense is None or arguments is None:
            raise ValueError(
                "distill: a substitution that was loaded or released knows neither its dense parameters nor arguments "
                "to verify it on; give dense_params= and test_args="
            )
        steps = whole_number("distill: steps", steps)
        training = Training(
            steps,
            optimizer,
            loss,
            trained_predicate(train),
            check_weight("distill", "layers", layers),
            whole_number("distill: seed", seed, 0),
        )
        batches = inputs if isinstance(inputs, Iterator) else batches_of(inputs, 0)
        explicit = make_kernels_explicit(self.f, dense, arguments)
        network = apply_with_chains(with_explicit_kernels(self.f), self.placements, with_images=True)
        chains = dense_chains(self.params, explicit, self.placements)
        with bar("Training small kernels", steps, progress) as advance:
            params = train_chains(network, self.params, chains, batches, training, advance)

        def teacher(*batch: Any) -> Any:
            return self.f(dense, *batch)

        expected = floats(jax.jit(teacher)(*arguments))
        errors = [
            relative_error(floats(jax.jit(self.apply)(values, *arguments)), expected)
            for values in (self.params, params)
        ]
        before, after = errors
        if after > before:
            warnings.warn(
                f"distill: the error of the results grew from {before:.4f} to {after:.4f}; take more inputs, which are "
                "like those of the test, or a lower rate",
                stacklevel=2,
            )
        report = dataclasses.replace(
            self.report,
            error=after,
            error_before_training=before,
            held_out_error=None,
            score_before=None,
            score_after=None,
        )
        return dataclasses.replace(self, params=params, report=report)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes parameters, chains and report to one `.npz` file: arrays, and their structure as JSON; no pickle."""
        saving.save(path, self.params, self.placements, self.report)

    @classmethod
    def load(cls, path: str | os.PathLike[str], f: Callable[..., Any], params: Any) -> Substitution:
        """Returns the substitution that `save` wrote.

        Args:
          path: path of the file.
          f: function that `substitute` got.
          params: parameters of the same structure as for `substitute`; the file's arrays replace theirs.

        Raises:
          ValueError: the file is of another format, or of parameters of another structure.
        """
        return cls(f, *saving.load(path, params))


Solve = Callable[[Budgets, float | None], Substitution]
"""Function from budgets and the largest error accepted, None for that of the first call, to a substitution."""
