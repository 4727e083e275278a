"""Tries each speedup when a model is loaded; one that fails is off, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lmaas_tune_adapters.hf.cpu.last_layer import last_layer, only_last
from lmaas_tune_adapters.hf.cpu.replicas import Replicas, replicate
from lmaas_tune_adapters.hf.logits import logits_at
from lmaas_tune_adapters.hf.probe import (
    OTHER_SCORES,
    TrialFailedError,
    close,
    failure_reason,
    probe_embeddings,
    probe_logits,
)
from lmaas_tune_adapters.hf.source import failure
from lmaas_tune_adapters.hf.speedups import (
    FEED_FORWARD_LAST,
    PartialLayer,
    Speedups,
    Worker,
    Workers,
)


class CpuSpeedups(Speedups):
    """Faster modules, a partial last layer, and passes side by side."""

    def install_kernels(self, network: Any, logits: Any) -> bool:
        """See `Speedups.install_kernels`."""
        if logits is None:
            self.report("processor kernels", "the model takes more than tokens")
            return True
        try:
            # the kernels use private parts of torch and transformers: the import may fail
            from lmaas_tune_adapters.hf.cpu.replacement import replace_modules
        except Exception as error:
            self.report("processor kernels", failure(error))
            return True
        failures = replace_modules(network)
        after = probe_logits(network)
        usable = after is not None and close(after, logits, single=1e-4, half=0.1)
        self.report("processor kernels", "; ".join(failures) if usable else OTHER_SCORES)
        return usable

    def last_layer(
        self, body: Any, layers: int, check: Callable[[PartialLayer], None]
    ) -> PartialLayer | None:
        """See `Speedups.last_layer`."""
        module = last_layer(body, layers)
        layer = PartialLayer(module, only_last)
        reason = (
            "its layers are in no list" if module is None else failure_reason(lambda: check(layer))
        )
        self.report("partial last layer", reason)
        return None if reason else layer

    def masked_body(self, network: Any, body: Any) -> Any:
        """See `Speedups.masked_body`: the attention of the last layer, if it passes a trial."""
        if network.config.model_type not in FEED_FORWARD_LAST:
            return body
        reason = failure_reason(lambda: _check_masked(network, body))
        self.report("partial last layer", reason)
        return body if reason else _last_attention(body)

    def workers(
        self,
        worker: Worker,
        network: Any,
        copy_to: Callable[[Any, Callable[[Any], Any]], Worker],
    ) -> Workers[Worker]:
        """See `Speedups.workers`."""
        if network.device.type != "cpu":
            return Workers(worker)

        def try_copy() -> None:
            copy_to(*replicate(network))

        reason = failure_reason(try_copy)
        self.report("parallel passes", reason)
        if reason:
            return Workers(worker)
        return Replicas(worker, lambda: copy_to(*replicate(network)), device=network.device)


def _last_attention(body: Any) -> Any:
    return body.encoder.layer[-1].attention


def _check_masked(network: Any, body: Any) -> None:
    whole = probe_embeddings(network)
    position = torch.tensor([[2]], device=whole.device)
    with torch.inference_mode():
        expected = logits_at(network, body, position, inputs_embeds=whole)
        ours = logits_at(network, _last_attention(body), position, inputs_embeds=whole)
    if not close(ours, expected):
        raise TrialFailedError(OTHER_SCORES)
